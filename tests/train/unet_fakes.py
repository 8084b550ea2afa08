"""What tests of the U-Net share."""

from __future__ import annotations

import torch

from train.models.unet import UNet, UNetConfig


def inputs(
    config: UNetConfig, size: int = 16, batch: int = 2, length: int = 5, device: str = "cpu"
) -> dict[str, torch.Tensor]:
    """Arguments of a forward pass."""
    generator = torch.Generator().manual_seed(0)
    found = {
        "x_BCHW": torch.randn(batch, 3, size, size, generator=generator),
        "log_snr_B": torch.linspace(-3, 3, batch),
        "text_BLD": torch.randn(batch, length, config.text_dim, generator=generator),
        "text_mask_BL": torch.ones(batch, length, dtype=torch.bool),
    }
    if config.lowres:
        found |= {"lowres_BCHW": torch.randn(batch, 3, size, size, generator=generator)}
        found |= {"lowres_log_snr_B": torch.full((batch,), 2.0)}
    return {name: value.to(device) for name, value in found.items()}


def awake(config: UNetConfig) -> UNet:
    """A U-Net whose zero-initialised layers are not zero, so that every input matters."""
    torch.manual_seed(0)
    model = UNet(config)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(False)
