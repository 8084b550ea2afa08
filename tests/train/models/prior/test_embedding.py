"""Embeddings as images of one pixel."""

from __future__ import annotations

import torch
from torch.nn import functional

from train.models.prior.embedding import embedding_to_image, image_to_embedding


def test_there_and_back() -> None:
    unit_BE = functional.normalize(torch.randn(5, 48, generator=torch.Generator().manual_seed(0)), dim=1)
    x_BE11 = embedding_to_image(unit_BE.half())
    assert x_BE11.shape == (5, 48, 1, 1) and x_BE11.dtype == torch.float32
    torch.testing.assert_close(x_BE11.square().mean(1).flatten(), torch.ones(5), atol=2e-3, rtol=0)
    torch.testing.assert_close(image_to_embedding(3 * x_BE11), unit_BE, atol=1e-3, rtol=0)
