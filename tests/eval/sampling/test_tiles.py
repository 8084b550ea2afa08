"""Tiles: where they begin, what each is given, equality with the whole image where a network sees single pixels."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dataprep.io.errors import UserError
from eval.sampling import loading, stage_sampler
from eval.sampling.cascade import Cascade
from eval.sampling.tiles import OVERLAP, call_in_tiles, tile_starts
from tests.helpers.cascades import DIT_SR, WordEncoder, difference, export, trained
from train.models.base import Conditions


@pytest.mark.parametrize("multiple", [1, 4, 16])
@pytest.mark.parametrize(("length", "tile"), [(64, 64), (64, 128), (80, 64), (256, 64), (1024, 512), (1040, 512)])
def test_tiles_cover_a_side_and_overlap(length: int, tile: int, multiple: int) -> None:
    starts = tile_starts(length, tile, multiple)
    assert starts[0] == 0 and starts[-1] == max(0, length - tile)
    assert all(start % multiple == 0 for start in starts)
    assert all(0 < after - before <= tile - tile // OVERLAP for before, after in pairwise(starts))
    assert len(starts) <= max(1, -(-length * 3 // (tile * 2)))  # no more than overlaps of half a tile would take


def test_a_network_of_single_pixels_gives_what_it_gives_on_the_whole_image() -> None:
    x_BCHW, lowres_BCHW = torch.randn(2, 3, 40, 24), torch.randn(2, 3, 40, 24)
    conditions = Conditions(lowres_BCHW=lowres_BCHW, region_masks_BRHW=x_BCHW[:, :1], text_BLD=torch.ones(2, 5, 7))
    sizes = []

    def call(part_BCHW: Tensor, given: Conditions) -> Tensor:
        assert given.lowres_BCHW is not None and given.region_masks_BRHW is not None and given.text_BLD is not None
        assert given.text_BLD.shape == (2, 5, 7)
        sizes.append(tuple(part_BCHW.shape[2:]))
        return torch.cat([part_BCHW * given.lowres_BCHW, given.region_masks_BRHW], dim=1)

    output = call_in_tiles(call, x_BCHW, conditions, 16, 4)
    torch.testing.assert_close(output, torch.cat([x_BCHW * lowres_BCHW, x_BCHW[:, :1]], dim=1))
    assert set(sizes) == {(16, 16)} and len(sizes) == 3 * 2


def test_neighbours_meet_without_a_step() -> None:
    """Tiles that disagree by a constant: the average goes from one to the other along the overlap."""
    numbers = iter(range(2))
    output = call_in_tiles(
        lambda part, _: torch.full_like(part, float(next(numbers))), torch.zeros(1, 1, 4, 28), Conditions(), 16, 1
    )
    line = output[0, 0, 0]
    steps = line.diff()
    assert line[0] == 0 and line[-1] == 1 and bool((steps >= 0).all()) and float(steps.max()) < 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("cascade"))


@pytest.fixture
def cascade(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Cascade:
    monkeypatch.setattr(loading, "TextEncoder", type("Loader", (), {"from_folder": lambda *_, **__: WordEncoder()}))
    return Cascade.from_pretrained(folder)


def test_a_stage_draws_in_tiles(cascade: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    widest = []
    call_in_parts = stage_sampler.call_in_parts

    def watch(model, x, *rest):  # type: ignore[no-untyped-def]
        widest.append(max(x.shape[2:]))
        return call_in_parts(model, x, *rest)

    monkeypatch.setattr(stage_sampler, "call_in_parts", watch)
    whole = cascade("a cat", size=(64, 48)).images[0]
    assert max(widest) == 64
    widest.clear()
    tiled = cascade("a cat", size=(64, 48), tile={"sr": 32}).images[0]
    assert max(widest) == 32 and tiled.size == (64, 48)
    assert difference(whole, tiled) > 0 and float(np.abs(np.asarray(whole, float) - np.asarray(tiled)).mean()) < 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "tile 0: .*greater than or equal to 1"),
        ({"tile": {"sr": 18}}, "tile 18: stage sr takes tiles of a multiple of "),
        ({"tile": {"base": 16}}, "tile 16: stage base has .* needs whole images; set tile for other stages alone"),
        ({"tile": {"sr": 32}, "attention": True}, "stage sr shows where it looks in whole images alone"),
    ],
)
def test_tiles_that_a_stage_cannot_take_are_refused(cascade: Cascade, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cascade("a cat", size=(64, 64), **options)  # type: ignore[arg-type]


def test_tiles_that_the_weaker_network_cannot_take_are_refused(cascade: Cascade) -> None:
    base, sr = cascade.stages
    options: dict[str, Any] = {"size": (64, 64), "tile": {"sr": 20}}
    for network, message in ((base.model, "has .* needs whole images"), (trained(DIT_SR), "takes tiles of a multiple")):
        guided = cascade.with_stages([base, replace(sr, guide=network)])
        with pytest.raises(UserError, match=f"tile 20: stage sr {message}"):
            guided("a cat", **options)
    guided("a cat", autoguidance=False, **options)


def test_a_tile_as_large_as_the_image_changes_nothing(cascade: Cascade) -> None:
    plain, tiled = (cascade("a cat", **options).images[0] for options in ({}, {"tile": 1024}))
    assert difference(plain, tiled) == 0
