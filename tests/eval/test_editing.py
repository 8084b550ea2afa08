"""Pictures from outside: sizes a cascade can draw, masks, fits; and what is asked of the whole cascade with them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dataprep.schema import UserError
from eval import editing


def stages(*described: tuple[int, int | None, int]) -> list[Any]:
    """Stages of (resolution, low resolution, size multiple)."""
    return [
        SimpleNamespace(
            entry=SimpleNamespace(name=f"s{size}", resolution=size, low_resolution=low),
            model=SimpleNamespace(config=SimpleNamespace(size_multiple=lambda multiple=multiple: multiple)),
        )
        for size, low, multiple in described
    ]


DEMO = stages((16, None, 4), (64, 16, 8), (256, 64, 8))


def test_sizes_fit_every_stage() -> None:
    assert editing.unit(DEMO) == 64 and editing.unit(DEMO[:2]) == 16 and editing.unit(DEMO[1:]) == 32
    for aspect in (0.3, 0.5, 2 / 3, 1, 1.5, 16 / 9, 4):
        width, height = editing.nearest_size(DEMO, aspect)
        assert width % 64 == 0 == height % 64 and 0.4 < width * height / 256**2 < 2
        assert editing.check_size(DEMO, (width, height)) == (width, height)
        for resolution in (16, 64):
            small = editing.stage_size(DEMO, (width, height), resolution)
            assert [side * 256 // resolution for side in small] == [width, height]
    assert editing.nearest_size(DEMO, 1) == (256, 256) and editing.nearest_size(DEMO, 1.5) == (320, 192)
    with pytest.raises(UserError, match="size 250x256: sides must be multiples of 64 at stage s256; take 256x256"):
        editing.check_size(DEMO, (250, 256))
    with pytest.raises(UserError, match=r"size 0x64: .*take 64x64"):
        editing.check_size(DEMO, (0, 64))
    with pytest.raises(UserError, match="aspect -1 is not a ratio"):
        editing.nearest_size(DEMO, -1)


def test_a_picture_is_cut_in_the_middle_and_averaged() -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 200  # the middle square
    assert (editing.fit(picture, (10, 10)) == 200).all()
    assert editing.fit(picture, (160, 80)).shape == (80, 160, 3)
    board = np.indices((8, 8)).sum(0)[..., None].repeat(3, 2).astype(np.uint8) % 2 * 200
    assert np.abs(editing.fit(board, (4, 4)).astype(int) - 100).max() <= 1  # averaged, not picked


def test_alpha_is_white_and_exif_turns() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (editing.rgb(clear) == 255).all()
    turned = Image.new("RGB", (4, 2))
    turned.getexif()[0x0112] = 6
    assert editing.rgb(turned).shape == (4, 2, 3)
    assert editing.rgb(Image.new("L", (3, 3), 7)).tolist() == [[[7] * 3] * 3] * 3


def test_masks() -> None:
    picture, mask = np.zeros((64, 64, 3), np.uint8), Image.new("L", (64, 64))
    with pytest.raises(UserError, match="mask is black all over"):
        editing.mask_of(mask, picture)
    with pytest.raises(UserError, match="mask of 8x8, image of 64x64"):
        editing.mask_of(mask.resize((8, 8)), picture)
    mask.paste(255, (33, 0, 34, 64))  # one pixel wide
    hidden = editing.mask_of(mask, picture)
    edit = editing.edit_at(picture, hidden, (16, 16), torch.device("cpu"))
    assert edit.hidden is not None and edit.hidden.shape == (1, 1, 16, 16)
    assert edit.hidden[0, 0].any(dim=0).nonzero().flatten().tolist() == [8]  # that pixel of the small image, whole
    assert edit.image.shape == (1, 3, 16, 16) and bool((edit.image == -1).all())
