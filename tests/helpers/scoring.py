"""A CLIP whose features are known, for tests of scoring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from eval.clip.scorer import ClipScorer


class Towers:
    """Features are the mean colour, and what a caption spells in digits."""

    def encode_image(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        return image_BHWC.float().mean((1, 2))

    def encode_text(self, ids_BL: torch.Tensor) -> torch.Tensor:
        return ids_BL.float()


def make_scorer() -> ClipScorer:
    """Returns a scorer with two images per batch."""

    def tokenize(captions: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[int(letter) for letter in caption] for caption in captions])

    return ClipScorer(Towers(), torch.from_numpy, tokenize, batch_size=2)


def flat(*colour: int) -> np.ndarray:
    """Returns a small image of one colour."""
    return np.full((4, 4, 3), colour, np.uint8)
