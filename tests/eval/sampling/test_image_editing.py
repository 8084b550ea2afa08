"""Images given by the user: sizes that a cascade can sample, crops, masks, orientation and transparency."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dataprep.io.errors import UserError
from eval.sampling import image_editing
from eval.sampling.config import StageEntry
from eval.sampling.stage_sampler import LoadedStage
from train.diffusion.config import DiffusionConfig


def network(multiple: int) -> Any:
    return SimpleNamespace(config=SimpleNamespace(size_multiple=lambda: multiple))


def stages(*described: tuple[int, int | None, int]) -> list[LoadedStage]:
    """Stages of (resolution, low resolution, size multiple)."""
    return [
        LoadedStage(
            StageEntry(name=f"s{size}", resolution=size, low_resolution=low, path=""),
            network(multiple),
            DiffusionConfig(),
        )
        for size, low, multiple in described
    ]


DEMO = stages((16, None, 4), (64, 16, 8), (256, 64, 8))


def test_sizes_fit_the_weaker_network_of_a_stage() -> None:
    base, *others = DEMO
    assert image_editing.size_step([base]) == 4
    guided = replace(base, guide=network(6))
    assert image_editing.size_step([guided]) == 12 and image_editing.size_step([guided, *others]) == 192


def test_sizes_fit_every_stage() -> None:
    assert (
        image_editing.size_step(DEMO) == 64
        and image_editing.size_step(DEMO[:2]) == 16
        and image_editing.size_step(DEMO[1:]) == 32
    )
    for aspect in (0.3, 0.5, 2 / 3, 1, 1.5, 16 / 9, 4):
        width, height = image_editing.nearest_size(DEMO, aspect)
        assert width % 64 == 0 == height % 64 and 0.4 < width * height / 256**2 < 2
        assert image_editing.check_size(DEMO, (width, height)) == (width, height)
        for resolution in (16, 64):
            small = image_editing.stage_size(DEMO, (width, height), resolution)
            assert [side * 256 // resolution for side in small] == [width, height]
    assert image_editing.nearest_size(DEMO, 1) == (256, 256) and image_editing.nearest_size(DEMO, 1.5) == (320, 192)
    with pytest.raises(UserError, match="size 250x256: sides must be multiples of 64 at stage s256; take 256x256"):
        image_editing.check_size(DEMO, (250, 256))
    with pytest.raises(UserError, match=r"size 0x64: .*take 64x64"):
        image_editing.check_size(DEMO, (0, 64))
    with pytest.raises(UserError, match="aspect -1 is not a ratio"):
        image_editing.nearest_size(DEMO, -1)


def test_image_is_cropped_at_the_centre_and_averaged() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 200  # the middle square
    assert (image_editing.fit_image(image, (10, 10)) == 200).all()
    assert image_editing.fit_image(image, (160, 80)).shape == (80, 160, 3)
    board = np.indices((8, 8)).sum(0)[..., None].repeat(3, 2).astype(np.uint8) % 2 * 200
    assert np.abs(image_editing.fit_image(board, (4, 4)).astype(int) - 100).max() <= 1  # averaged, not picked


def test_transparency_becomes_white_and_exif_rotates() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (image_editing.to_rgb(clear) == 255).all()
    turned = Image.new("RGB", (4, 2))
    turned.getexif()[0x0112] = 6
    assert image_editing.to_rgb(turned).shape == (4, 2, 3)
    assert image_editing.to_rgb(Image.new("L", (3, 3), 7)).tolist() == [[[7] * 3] * 3] * 3


def test_mask_covers_every_pixel_that_it_touches() -> None:
    image, mask = np.zeros((64, 64, 3), np.uint8), Image.new("L", (64, 64))
    with pytest.raises(UserError, match="mask has no white"):
        image_editing.read_mask(mask, image)
    with pytest.raises(UserError, match="mask of 8x8, image of 64x64"):
        image_editing.read_mask(mask.resize((8, 8)), image)
    mask.paste(255, (33, 0, 34, 64))  # one pixel wide
    hidden = image_editing.read_mask(mask, image)
    edit = image_editing.edit_at(image, hidden, (16, 16), torch.device("cpu"))
    assert edit.hidden is not None and edit.hidden.shape == (1, 1, 16, 16)
    assert edit.hidden[0, 0].any(dim=0).nonzero().flatten().tolist() == [8]  # the whole pixel of the small image
    assert edit.image.shape == (1, 3, 16, 16) and bool((edit.image == -1).all())


def test_deep_grey_is_scaled_and_floats_are_refused() -> None:
    deep = Image.fromarray(np.full((2, 3), 0x8080, np.uint16))
    assert (image_editing.to_rgb(deep) == 128).all()
    with pytest.raises(UserError, match="image of mode F: floating-point pixels have no defined range"):
        image_editing.to_rgb(Image.new("F", (2, 2), 0.5))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_white_on_transparent_is_what_is_masked(mode: str) -> None:
    mask = Image.new("RGBA", (4, 4), (255, 255, 255, 0))  # white throughout, opaque in one place
    mask.putpixel((1, 2), (255, 255, 255, 255))
    mask.putpixel((3, 3), (0, 0, 0, 255))
    found_HW = image_editing.read_mask(mask.convert(mode), np.zeros((4, 4, 3), np.uint8))
    assert np.argwhere(found_HW).tolist() == [[2, 1]]


def test_a_mask_is_rotated_as_its_image() -> None:
    mask = Image.new("L", (4, 2), 255)
    mask.getexif()[0x0112] = 6
    assert image_editing.read_mask(mask, np.zeros((4, 2, 3), np.uint8)).all()
