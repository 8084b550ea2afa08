"""Transformer that predicts the hidden codes of an image from the others, its low-resolution version and a caption.

After Chang et al. 2022 (MaskGIT) and 2023 (Muse, section 2.5: a super-resolution stage of codes), with the blocks of
the diffusion transformer in place of their own.

Shape legend: B batch, C channels, H W height and width of the image, h w of its codes, N = h * w, K number of codes.
"""

from __future__ import annotations

from torch import Tensor, nn

from train.models.base import Conditions, check_conditions
from train.models.dit.dit import DiT
from train.models.refiner.config import SUPPORTED_CONDITIONS, RefinerConfig
from train.models.vq.autoencoder import VqAutoencoder


class Refiner(DiT):
    """Predicts codes. A stage of the cascade also holds the ``autoencoder`` of the codes, frozen.

    The share of hidden codes takes the place of the noise level: log(shown / hidden), as a log-SNR.
    """

    config: RefinerConfig

    def __init__(self, config: RefinerConfig, complete: bool = True) -> None:
        """``complete``: with the autoencoder, which training has apart."""
        codes = config.autoencoder.codes
        super().__init__(config, config.patch**2 * config.image_channels, codes)
        self.codes = nn.Embedding(codes + 1, config.width)  # the last one: hidden
        nn.init.normal_(self.codes.weight, std=0.02)
        self.autoencoder = VqAutoencoder(config.autoencoder).requires_grad_(False) if complete else None

    def forward(self, codes_Bhw: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        """Returns the logits of the codes (B, K, h, w) from the shown ones; K stands for a hidden one.

        ``log_snr_B``: `train.models.refiner.masking.shown_log_ratio`. Needs the caption's tokens, and the
        low-resolution image, resized to the size of the image, with its log-SNR.
        """
        check_conditions(conditions, SUPPORTED_CONDITIONS, "refiner")
        lowres_BCHW = conditions.lowres_BCHW
        if conditions.text_BLD is None or lowres_BCHW is None or conditions.lowres_log_snr_B is None:
            raise ValueError("a refiner needs text_BLD, lowres_BCHW and lowres_log_snr_B")
        size = (codes_Bhw.shape[1], codes_Bhw.shape[2])
        side, window = self.config.patch, max(1, self.config.window)
        if size != (lowres_BCHW.shape[2] // side, lowres_BCHW.shape[3] // side):
            raise ValueError(f"codes of {size} for an image of {tuple(lowres_BCHW.shape[2:])} pixels, {side} a code")
        if size[0] % window or size[1] % window:
            raise ValueError(f"codes of {size}; height and width must be multiples of the window, {window}")
        x_BNC = self.embed_patches(lowres_BCHW)
        x_BNC = x_BNC + self.codes(codes_Bhw.flatten(1)).to(x_BNC.dtype)
        logits_BNK = self.out(self.transform(x_BNC, size, log_snr_B, conditions))
        return logits_BNK.transpose(1, 2).unflatten(2, size)
