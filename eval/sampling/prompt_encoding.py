"""Prompts to token embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dataprep.io.errors import UserError
from eval.sampling.options import Overlong


class PromptEncoder(Protocol):
    """A text encoder, such as `dataprep.text.encoder.TextEncoder`."""

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Returns one float32 array (L_i, D) per caption."""
        ...

    def beyond(self, caption: str) -> str:
        """Returns the end of the caption that is beyond the encoder's limit, "" if it fits."""
        ...

    def pieces(self, caption: str) -> list[str]:
        """Returns the text of each token of `encode`, without padding."""
        ...


def encode_prompts(encoder: PromptEncoder, prompts: Sequence[str], overlong: Overlong) -> dict[str, np.ndarray]:
    """Returns {prompt: float32 (L_i, D)}. A prompt that is too long is cut with a warning; "refuse": UserError."""
    distinct = list(dict.fromkeys(prompts))
    for prompt in distinct:
        if lost := encoder.beyond(prompt):
            message = f"prompt {prompt[:40]!r}... is too long: the text encoder does not read its end, {lost!r}"
            if overlong == "refuse":
                raise UserError(f"{message}; shorten it")
            warnings.warn(message, stacklevel=3)
    return dict(zip(distinct, encoder.encode(distinct), strict=True))
