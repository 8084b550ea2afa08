"""Small pieces that several networks are built of.

Shape legend: B batch, N positions, C channels, G heads, d head width, H W height and width.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

COORDINATE_FEATURES = 10
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def split_heads(x_BNC: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, G, N, d)."""
    return x_BNC.unflatten(2, (heads, -1)).transpose(1, 2)


def coordinate_features(height: int, width: int, like: Tensor) -> Tensor:
    """Returns coordinate features (1, 10, H, W): x, y in [-1, 1] and two octaves of waves; device, dtype of ``like``.

    Zero-padded convolutions carry little position information, and captions name positions.
    """
    y = (torch.arange(height, device=like.device) * 2 + 1) / height - 1
    x = (torch.arange(width, device=like.device) * 2 + 1) / width - 1
    grid_2HW = torch.stack([y[:, None].expand(height, width), x[None].expand(height, width)])
    waves = [f(grid_2HW * (math.pi * k)) for k in (0.5, 1.0) for f in (torch.sin, torch.cos)]
    return torch.cat([grid_2HW, *waves])[None].to(like.dtype)


def add_to_prediction(output_BCHW: Tensor, image_BCHW: Tensor) -> Tensor:
    """Adds an image to the prediction in an output, which a learned variance may follow."""
    channels = image_BCHW.shape[1]
    if output_BCHW.shape[1] == channels:
        return output_BCHW + image_BCHW
    return torch.cat([output_BCHW[:, :channels] + image_BCHW, output_BCHW[:, channels:]], dim=1)


def zero_init(layer: Layer) -> Layer:
    """Sets the layer's weight and bias to zero, so that its residual branch starts at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
