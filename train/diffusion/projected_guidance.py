"""Adaptive projected guidance (APG, Sadat et al. 2024, arXiv 2410.02416): guidance without its oversaturation.

What guidance adds to a predicted clean image is limited in size, damped over the steps, and kept mostly orthogonal to
the image: the part along it only makes it more saturated. Images are (B, C, H, W), float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Projection(NamedTuple):
    """How the difference of two predictions becomes guidance; the default leaves it as it is.

    ``parallel``: kept share of the part along the image (the paper's eta). ``norm``: largest root mean square of the
    difference (the paper's r over the root of the number of values). ``momentum``: weight of earlier differences (its
    beta); below 0 pushes away from them.
    """

    parallel: float = 1.0
    norm: float | None = None
    momentum: float = 0.0


NO_PROJECTION = Projection()


@dataclass
class DifferenceMemory:
    """Differences of one sampling: the running one, which `projected_guidance` updates, and the last that was asked."""

    difference_BCHW: Tensor | None = None
    last_BCHW: Tensor | None = None
    steps: int = 0  # since that


def projected_guidance(
    conditional_BCHW: Tensor,
    difference_BCHW: Tensor,
    scale: float,
    projection: Projection,
    memory: DifferenceMemory,
) -> Tensor:
    """Guides predicted clean images by ``difference_BCHW``, what they have over unconditional ones (algorithm 1).

    With the default `Projection` it is classifier-free guidance.
    """
    if projection.momentum:
        if memory.difference_BCHW is not None:
            difference_BCHW = difference_BCHW + projection.momentum * memory.difference_BCHW
        memory.difference_BCHW = difference_BCHW
    if projection.norm is not None:
        size_B111 = difference_BCHW.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        difference_BCHW = difference_BCHW * (projection.norm / size_B111.clamp(min=1e-12)).clamp(max=1.0)
    along_BCHW = project(difference_BCHW, conditional_BCHW)
    return conditional_BCHW + (scale - 1) * (difference_BCHW - (1 - projection.parallel) * along_BCHW)


def project(value_BCHW: Tensor, onto_BCHW: Tensor) -> Tensor:
    """Returns the part of each image of ``value_BCHW`` along that of ``onto_BCHW``; 0 where the latter is 0."""
    squares_B111 = onto_BCHW.double().square().sum(dim=(1, 2, 3), keepdim=True)
    product_B111 = (value_BCHW.double() * onto_BCHW.double()).sum(dim=(1, 2, 3), keepdim=True)
    share_B111 = torch.where(squares_B111 > 0, product_B111 / squares_B111.clamp(min=1e-30), 0.0)
    return share_B111.to(value_BCHW.dtype) * onto_BCHW
