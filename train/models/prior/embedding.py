"""Image embeddings as what a diffusion process noises: images of one pixel.

Shape legend: B batch, E width of the embedding.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def embedding_to_image(unit_BE: Tensor) -> Tensor:
    """Scales unit vectors (B, E) to a mean square of 1, which the noise has too: float32 (B, E, 1, 1)."""
    return (unit_BE.float() * unit_BE.shape[1] ** 0.5)[:, :, None, None]


def image_to_embedding(x_BE11: Tensor) -> Tensor:
    """Returns the unit vectors (B, E) in the direction of (B, E, 1, 1)."""
    return functional.normalize(x_BE11.flatten(1).float(), dim=1)
