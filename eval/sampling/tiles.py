"""Runs a network on overlapping tiles of an image, for images whose features do not fit in memory at once.

At every step each tile gets its part of the noisy image and of the low-resolution image; where tiles overlap, the
predictions are averaged, each weighted by the distance to the nearest edge of its tile (as MultiDiffusion does, Bar-Tal
et al. 2023, arXiv 2302.08113). What a network takes from the whole image, such as the means of its group norms, it
takes from the tile: the result is near that of the whole image, and not equal to it.

Shape legend: B batch, C channels, H W height and width, T height and width of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from train.models.base import Conditions

OVERLAP = 4  # tiles overlap by at least one part of so many
LEAST = 4  # a tile's least side, in multiples of the network's `size_multiple`

Call = Callable[[Tensor, Conditions], Tensor]  # network on (B, C, H, W) of any size, with its conditions


def call_in_tiles(call: Call, x_BCHW: Tensor, conditions: Conditions, tile: int, multiple: int) -> Tensor:
    """Returns the network's output (B, C', H, W), float32, from tiles of at most ``tile`` pixels per side.

    ``multiple``: tiles begin at multiples of it. Only one tile's features are in memory at a time.
    """
    height, width = x_BCHW.shape[2:]
    total_BCHW, weights_HW = None, x_BCHW.new_zeros(height, width, dtype=torch.float32)
    for rows, columns in _tiles(height, width, tile, multiple):
        output_BCTT = call(x_BCHW[:, :, rows, columns], _crop_conditions(conditions, rows, columns)).float()
        if total_BCHW is None:
            total_BCHW = output_BCTT.new_zeros(*output_BCTT.shape[:2], height, width)
        weight_TT = _ramp(rows, x_BCHW)[:, None] * _ramp(columns, x_BCHW)
        total_BCHW[:, :, rows, columns] += output_BCTT * weight_TT
        weights_HW[rows, columns] += weight_TT
    assert total_BCHW is not None, "an image has at least one tile"
    return total_BCHW / weights_HW


def tile_starts(length: int, tile: int, multiple: int) -> list[int]:
    """Returns where tiles begin along a side of ``length`` pixels: as few as overlap enough, evenly spread."""
    if tile >= length:
        return [0]
    apart = max(multiple, (tile - tile // OVERLAP) // multiple * multiple)
    count = -(-(length - tile) // apart) + 1
    return [round((length - tile) * number / (count - 1) / multiple) * multiple for number in range(count)]


def _tiles(height: int, width: int, tile: int, multiple: int) -> Iterator[tuple[slice, slice]]:
    """Yields the rows and columns of each tile."""
    for top in tile_starts(height, tile, multiple):
        for left in tile_starts(width, tile, multiple):
            yield slice(top, min(top + tile, height)), slice(left, min(left + tile, width))


def _ramp(part: slice, like: Tensor) -> Tensor:
    """Returns weights (T,) along a side of a tile: 1 at its ends, rising to its middle."""
    index_T = torch.arange(1, part.stop - part.start + 1, device=like.device, dtype=torch.float32)
    return torch.minimum(index_T, index_T.flip(0))


def _crop_conditions(conditions: Conditions, rows: slice, columns: slice) -> Conditions:
    """Returns the conditions of a tile."""
    changes = {
        name: value[..., rows, columns]
        for name in ("lowres_BCHW", "region_masks_BRHW")
        if (value := getattr(conditions, name)) is not None
    }
    return conditions._replace(**changes)
