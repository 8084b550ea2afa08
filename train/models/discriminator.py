"""Discriminator of patches, which also sees the caption, for adversarial training.

After Isola et al. 2017 (a logit for each patch), with the caption by projection (Miyato and Koyama 2018, equation 3).

Shape legend: B batch, C channels, H W height and width, h w of the logits, E width of the pooled caption.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.2  # of leaky ReLU below 0


class Judgement(NamedTuple):
    """What a discriminator says of images."""

    logits_Bhw: Tensor  # > 0: a real patch
    features_BC: Tensor  # mean over the patches of what the logits are computed from


class PatchDiscriminator(nn.Module):
    """Convolutions without norms, each layer halving the size and doubling the width, then a logit at each position.

    ``text_dim`` None: without the caption. ``detail``: pixels per side of squares whose mean is taken out of the image,
    so that gradients leave their colours as they are; 0: none is. All computation is in float32.
    """

    def __init__(self, channels: int, width: int, layers: int, text_dim: int | None, detail: int) -> None:
        super().__init__()
        self.detail = detail
        self.embed = nn.Conv2d(channels, width, 3, padding=1)
        widths = [width * 2**number for number in range(layers + 1)]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.out = nn.Conv2d(widths[-1], 1, 1)
        self.text = nn.Linear(text_dim, widths[-1]) if text_dim is not None else None
        self.scale = widths[-1] ** -0.5

    def forward(self, image_BCHW: Tensor, text_BE: Tensor | None) -> Judgement:
        """Judges images in [-1, 1] whose sides are multiples of ``detail``; ``text_BE``: their pooled captions."""
        if self.detail:
            means_BCHW = functional.avg_pool2d(image_BCHW, self.detail)
            image_BCHW = image_BCHW - functional.interpolate(means_BCHW, scale_factor=self.detail, mode="nearest")
        x_BCHW = functional.leaky_relu(self.embed(image_BCHW), SLOPE)
        for layer in self.layers:
            x_BCHW = functional.leaky_relu(layer(x_BCHW), SLOPE)
        logits_Bhw = self.out(x_BCHW)[:, 0]
        if self.text is not None and text_BE is not None:
            logits_Bhw = logits_Bhw + torch.einsum("bchw,bc->bhw", x_BCHW, self.text(text_BE)) * self.scale
        return Judgement(logits_Bhw, x_BCHW.mean((2, 3)))


def pool_text(text_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
    """Returns the mean of the caption's tokens, normalised to a root mean square of 1, float32 (B, D)."""
    text_BLD = text_BLD.float()
    if mask_BL is not None:
        text_BLD = torch.where(mask_BL[:, :, None].bool(), text_BLD, 0.0)
    sum_BD = text_BLD.sum(1)
    return functional.rms_norm(sum_BD, sum_BD.shape[1:], eps=1e-6)
