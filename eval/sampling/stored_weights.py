"""Weights of a network in fewer bits while it samples: memory for a little time, and for what rounding costs.

Each use of a weight restores it in the type that the network computes in (fp32 on CPUs, bf16 on GPUs). Matrices and
kernels alone: they are nearly all of a network.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dataprep.io.errors import UserError

StoredWeights = Literal["whole", "bfloat16", "int8"]
LAYERS = (nn.Linear, nn.Conv2d)
LARGEST = 127  # of an int8, symmetric


class Rounded(nn.Module):
    """A weight as bfloat16."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, rounded: Tensor) -> Tensor:
        """Returns the weight in the network's type."""
        return rounded.to(self.dtype)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor]:
        """Returns what is kept of a weight."""
        return (weight.to(torch.bfloat16),)  # a tuple: a tensor alone would have to keep its type


class Quantized(nn.Module):
    """A weight as int8, with a scale for each output."""

    def forward(self, levels: Tensor, scale: Tensor) -> Tensor:
        """Returns the weight, in the type of its scale."""
        return levels.to(scale.dtype) * scale

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what is kept of a weight: levels, int8, and a scale for each of its first axis."""
        largest = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
        scale = (largest / LARGEST).clamp(min=torch.finfo(weight.dtype).tiny)
        return (weight / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def store_weights(network: nn.Module, kind: StoredWeights) -> None:
    """Keeps the matrices and kernels of ``network``, which is not trained any more, as ``kind``, in place.

    Raises UserError for an unknown kind.
    """
    if kind not in get_args(StoredWeights):
        raise UserError(f"weights {kind!r} is unknown; take one of {', '.join(get_args(StoredWeights))}")
    if kind == "whole":
        return
    for layer in list(network.modules()):
        if isinstance(layer, LAYERS) and layer.weight.any():  # of zeros there is no scale
            keep = Quantized() if kind == "int8" else Rounded(layer.weight.dtype)
            parametrize.register_parametrization(layer, "weight", keep, unsafe=True)


def count_weight_bytes(network: nn.Module) -> int:
    """Returns the bytes of all that a network keeps."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
