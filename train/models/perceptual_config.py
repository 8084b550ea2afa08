"""Config of the perceptual term of a stage's loss. Light: loads no torch."""

from __future__ import annotations

from pydantic import Field

from dataprep.io.config import Config


class PerceptualConfig(Config):
    """A distance between features of VGG16 for the predicted and the true image, added to the loss at low noise."""

    weights: str = Field(
        description="local file (.safetensors, .pt, .pth) of VGG16 in torchvision's layout, or of a whole LPIPS"
    )
    lpips: str | None = Field(
        None, description="LPIPS's own linear weights (vgg.pth), if `weights` has none; None: all channels count alike"
    )
    weight: float = Field(0.1, gt=0, description="weight beside the loss, where there is no noise")
    log_snr: float = Field(0.0, description="log-SNR at which the weight is one half; with more noise it vanishes")
