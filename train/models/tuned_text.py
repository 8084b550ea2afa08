"""A text encoder of which small parts are trained through a frozen denoiser.

Legend: B batch, L tokens of the longest caption, T tokens that are read, D channels of the text, N learned words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from train.models.base import Conditions


class TunedText(nn.Module):
    """Encodes token ids, some of which have learned vectors in place of the table's, and denoises by the result.

    Encoder and denoiser are frozen. The learned vectors are stored as ``tokens`` (N, D), divided by ``unit``: the
    table's standard deviation, so that one learning rate suits tables of any scale.
    """

    def __init__(
        self,
        encoder: nn.Module,
        denoiser: nn.Module,
        ids: Sequence[int] = (),
        start_ND: Tensor | None = None,
        unit: float = 1.0,
    ) -> None:
        """``encoder`` is a text model of transformers; ``ids`` are the learned tokens, ``start_ND`` their vectors."""
        super().__init__()
        self.text_encoder, self.denoiser = encoder.requires_grad_(False), denoiser.requires_grad_(False)
        self.unit = unit
        self.ids_N: Tensor
        self.register_buffer("ids_N", torch.tensor(list(ids)), persistent=False)
        self.tokens = None if start_ND is None else nn.Parameter(start_ND / unit)

    def train(self, mode: bool = True) -> Self:
        """Leaves the frozen networks in evaluation mode: what is learned should fit them without dropout."""
        super().train(mode)
        self.text_encoder.eval()
        self.denoiser.eval()
        return self

    def forward(self, x_BCHW: Tensor, log_snr_B: Tensor, ids_BL: Tensor, mask_BL: Tensor, kept_BL: Tensor) -> Tensor:
        """Returns the denoiser's prediction (B, C, H, W) for captions of token ids.

        ``mask_BL``: int64, 1 at tokens that the encoder attends to; ``kept_BL``: bool, those that the denoiser reads.
        """
        text_BLD = self.encode(ids_BL, mask_BL)
        output_BCHW: Tensor = self.denoiser(
            x_BCHW, log_snr_B, Conditions(text_BLD=text_BLD.to(x_BCHW.dtype), text_mask_BL=kept_BL)
        )
        return output_BCHW

    def encode(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Returns the encoder's output (B, L, D)."""
        table = _find_table(self.text_encoder)
        # Learned ids may lie beyond the table; what is read there is replaced.
        vectors_BLD = table(ids_BL.clamp(max=table.num_embeddings - 1))
        if self.tokens is not None:
            is_BLN = ids_BL[..., None].eq(self.ids_N)
            learned_BLD = is_BLN.to(self.tokens.dtype) @ (self.tokens * self.unit)
            vectors_BLD = torch.where(is_BLN.any(-1, keepdim=True), learned_BLD.to(vectors_BLD.dtype), vectors_BLD)
        states_BLD: Tensor = self.text_encoder(inputs_embeds=vectors_BLD, attention_mask=mask_BL).last_hidden_state
        return states_BLD


def _find_table(encoder: Any) -> nn.Embedding:
    table: nn.Embedding = encoder.get_input_embeddings()
    return table
