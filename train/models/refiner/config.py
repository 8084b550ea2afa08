"""Config and named layouts of the network that predicts codes of an image. Light: loads no torch."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from train.models.dit.config import DiTConfig
from train.models.vq.config import VqConfig

SUPPORTED_CONDITIONS = ("text_BLD", "text_mask_BL", "text_keep_B", "lowres_BCHW", "lowres_log_snr_B")


class RefinerConfig(DiTConfig):
    """A transformer over the codes of an image, with a token for each, and the autoencoder that the codes are of."""

    lowres: bool = Field(default=True, description="takes a low-resolution image")
    autoencoder: VqConfig = Field(default=VqConfig(), description="as trained by the stage that `autoencoder` names")

    @model_validator(mode="after")
    def _check_codes(self) -> Self:
        if not self.lowres or self.lowres_residual:
            raise ValueError("a refiner takes a low-resolution image and predicts codes: lowres true, no residual")
        if self.patch != self.autoencoder.stride():
            stride = self.autoencoder.stride()
            raise ValueError(f"patch {self.patch}: a token is a code of {stride} pixels; set it to that")
        if self.learned_variance:
            raise ValueError("learned_variance=true: codes are not denoised and have none; leave it out")
        if self.image_embedding_dim:
            raise ValueError(f"image_embedding_dim {self.image_embedding_dim}: a refiner takes none; set it to 0")
        return self


_TINY: dict[str, Any] = {"width": 128, "head_width": 32, "context_width": 64, "condition_width": 128}
PRESETS: dict[str, RefinerConfig] = {
    # 256x256 in 1024 codes, for training on a GPU.
    "refiner-256": RefinerConfig(
        patch=8,
        width=896,
        depth=20,
        condition_width=512,
        context_width=1024,
        text_layers=2,
        text_dim=4096,
        autoencoder=VqConfig(widths=(96, 192, 256, 384), blocks=2, codes=8192, code_width=32),
    ),
    # 64x64 in 256 codes on two cores.
    "refiner-tiny": RefinerConfig(patch=4, depth=4, autoencoder=VqConfig(patch=2, widths=(48, 96)), **_TINY),
    # For tests and smoke runs.
    "refiner-micro": RefinerConfig(
        patch=4,
        width=32,
        depth=2,
        head_width=16,
        context_width=16,
        condition_width=32,
        autoencoder=VqConfig(patch=2, widths=(8, 16), codes=16, code_width=4),
    ),
}
