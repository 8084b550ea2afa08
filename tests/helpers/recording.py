"""A network that notes what it is given, and checks of the notes against the definition x = alpha x_0 + sigma eps."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from train.models.base import Conditions, DenoiserConfig


class RecordingDenoiser(nn.Module):
    """Notes the arguments of each call, and predicts zeros."""

    def __init__(self, config: DenoiserConfig | None = None) -> None:
        super().__init__()
        self.config = config or DenoiserConfig()
        self.calls: list[tuple[Tensor, Tensor, Conditions]] = []

    def forward(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        self.calls.append((x_BCHW, log_snr_B, conditions))
        return torch.zeros_like(x_BCHW)


def find_noise(x_BCHW: Tensor, clean_BCHW: Tensor, log_snr_B: Tensor) -> Tensor:
    """Returns the eps with which ``x`` is ``clean`` noised to ``log_snr``, float64."""
    alpha_B, sigma_B = log_snr_B.double().sigmoid().sqrt(), (-log_snr_B.double()).sigmoid().sqrt()
    return (x_BCHW.double() - alpha_B[:, None, None, None] * clean_BCHW.double()) / sigma_B[:, None, None, None]


def assert_standard_normal(noise_BCHW: Tensor, tolerance: float = 0.05) -> None:
    """Asserts mean 0 and standard deviation 1 over all, and a standard deviation near 1 in each image.

    One image of n numbers has a standard error of 1 / sqrt(2 n), of which six are allowed.
    """
    assert abs(float(noise_BCHW.mean())) < tolerance and abs(float(noise_BCHW.std()) - 1) < tolerance
    sd_B = noise_BCHW.flatten(1).std(dim=1)
    assert float((sd_B - 1).abs().max()) < 6 / (2 * noise_BCHW[0].numel()) ** 0.5


def correlation(one: Tensor, other: Tensor) -> float:
    """Returns the absolute correlation of two tensors of one shape."""
    return abs(float(torch.corrcoef(torch.stack([one.double().flatten(), other.double().flatten()]))[0, 1]))


def resize_bilinear(images_BCHW: Tensor, side: int) -> Tensor:
    """Resizes to a square by OpenCV's bilinear interpolation, an implementation of its own."""
    return torch.stack(
        [
            torch.from_numpy(
                cv2.resize(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), (side, side))  # INTER_LINEAR
            ).permute(2, 0, 1)
            for image in images_BCHW
        ]
    )
