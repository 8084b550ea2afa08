"""Shared by tests of the U-Net, and of other denoisers."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from train.models.backbones import denoiser_config
from train.models.base import Conditions, Denoiser, DenoiserConfig
from train.models.unet.config import UNetConfig
from train.models.unet.unet import UNet

Network = TypeVar("Network", bound=nn.Module)


def unet_config(preset: str, **overrides: Any) -> UNetConfig:
    """Returns a U-Net preset with fields replaced."""
    config = denoiser_config(preset, overrides)
    assert isinstance(config, UNetConfig)
    return config


def make_inputs(
    config: DenoiserConfig, size: int = 16, batch: int = 2, length: int = 5, device: str = "cpu"
) -> dict[str, Tensor]:
    """Returns inputs for `predict`, by name."""
    generator = torch.Generator().manual_seed(0)
    given = {
        "x_BCHW": torch.randn(batch, 3, size, size, generator=generator),
        "log_snr_B": torch.linspace(-3, 3, batch),
        "text_BLD": torch.randn(batch, length, config.text_dim, generator=generator),
        "text_mask_BL": torch.ones(batch, length, dtype=torch.bool),
    }
    if config.lowres:
        given |= {"lowres_BCHW": torch.randn(batch, 3, size, size, generator=generator)}
        given |= {"lowres_log_snr_B": torch.full((batch,), 2.0)}
    return {name: value.to(device) for name, value in given.items()}


def predict(model: Denoiser, given: dict[str, Tensor]) -> Tensor:
    """Calls a denoiser with inputs by name."""
    conditions = {name: value for name, value in given.items() if name not in ("x_BCHW", "log_snr_B")}
    return model(given["x_BCHW"], given["log_snr_B"], Conditions(**conditions))


def build_awake(config: UNetConfig) -> UNet:
    """Builds a U-Net whose zero-initialised layers are not zero, so that every input matters."""
    torch.manual_seed(0)
    return wake(UNet(config))


def wake(model: Network) -> Network:
    """Fills the zero parameters of a network with noise, and returns it for evaluation."""
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(False)
