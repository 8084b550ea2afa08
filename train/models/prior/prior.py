"""The diffusion prior of DALL-E 2: a transformer that predicts a CLIP image embedding from a caption.

After Ramesh et al. 2022 (arXiv 2204.06125), section 2.2: one sequence of the encoded text, the CLIP embedding of the
text, the noise level, the noised image embedding, and a last token, at which the output is read. Unlike there, the text
tokens are those of the cascade's text encoder, and attention is not causal: a single output is read.

Shape legend: B batch, L caption tokens, D text width, T = L + 1 tokens with the null token, C width, E embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from train.models.base import Conditions, check_conditions
from train.models.conditioning import (
    NoiseEmbedding,
    OptionalVector,
    TextBlock,
    TextConditioner,
    append_tokens,
    position_features,
)
from train.models.layers import zero_init
from train.models.prior.config import SUPPORTED_CONDITIONS, PriorConfig

NOISE_FEATURES = 256
OWN_TOKENS = 4  # behind the text: its embedding, the noise level, the noised image embedding, the output
GROWTH = 4  # hidden width of the feed-forward networks / width


class EmbeddingPrior(nn.Module):
    """Predicts the clean image embedding, as an image (B, E, 1, 1), from the noised one and a caption.

    A caption is dropped as a whole: tokens by ``text_keep_B``, its CLIP embedding by a row of zeros.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        width, embedding = config.width, config.image_channels
        self.text = TextConditioner(config.text_dim, width, 0, width)
        self.pooled = OptionalVector(embedding)
        self.pooled_in, self.image_in = nn.Linear(embedding, width), nn.Linear(embedding, width)
        self.noise = NoiseEmbedding(NOISE_FEATURES, width)
        self.read = nn.Parameter(torch.randn(width) * 0.5)
        self.place = nn.Parameter(torch.randn(OWN_TOKENS, width) * 0.02)
        self.blocks = nn.ModuleList(
            TextBlock(width, width // config.head_width, growth=GROWTH) for _ in range(config.depth)
        )
        self.norm_out = nn.LayerNorm(width)
        self.out = zero_init(nn.Linear(width, embedding))
        self.recompute = False

    def forward(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        """Returns the prediction (B, E, 1, 1), as `train.models.base.Denoiser` specifies. Requires text tokens."""
        self._check_inputs(x_BCHW, conditions)
        batch = x_BCHW.shape[0]
        text_BTC, mask_BT, vector_BC = self.text.read(conditions)
        text_BTC = text_BTC + position_features(text_BTC.shape[1], text_BTC.shape[2], text_BTC.device).to(
            text_BTC.dtype
        )
        own = [
            self.pooled_in(self.pooled(conditions.pooled_text_BE, batch)),
            self.noise(log_snr_B) + vector_BC,
            self.image_in(x_BCHW.flatten(1).to(self.image_in.weight.dtype)),
            self.read.expand(batch, -1),
        ]
        x_BTC, mask_BT = append_tokens(text_BTC, mask_BT, torch.stack(own, dim=1) + self.place)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x_BTC = checkpoint(block, x_BTC, mask_BT, use_reentrant=False)
            else:
                x_BTC = block(x_BTC, mask_BT)
        output_BE: Tensor = self.out(self.norm_out(x_BTC[:, -1]))
        return output_BE[:, :, None, None]

    def encode_text(self, conditions: Conditions) -> Conditions:
        """Returns the conditions with features of the text in its place, see `TextEncodingDenoiser`."""
        return self.text.encode(conditions)

    def enable_recompute(self) -> None:
        """From now on keeps only the input of each block for the backward pass and recomputes the rest there."""
        self.recompute = True

    def _check_inputs(self, x_BCHW: Tensor, conditions: Conditions) -> None:
        check_conditions(conditions, SUPPORTED_CONDITIONS, "prior")
        shape = (self.config.image_channels, 1, 1)
        if tuple(x_BCHW.shape[1:]) != shape:
            raise ValueError(f"embedding of shape {tuple(x_BCHW.shape[1:])}; this prior takes {shape}")
        if conditions.text_BLD is None and conditions.encoded_text_BTC is None:
            raise ValueError("the prior needs text_BLD")
