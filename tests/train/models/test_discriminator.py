"""The discriminator of patches."""

from __future__ import annotations

import pytest
import torch

from train.models.discriminator import PatchDiscriminator, pool_text


def build(text_dim: int | None = 8, detail: int = 0) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(3, 8, 2, text_dim, detail)


def test_shapes() -> None:
    judged = build()(torch.randn(2, 3, 16, 24), torch.randn(2, 8))
    assert judged.logits_Bhw.shape == (2, 4, 6) and judged.features_BC.shape == (2, 32)


def test_the_caption_matters_if_it_is_seen() -> None:
    image, texts = torch.randn(2, 3, 16, 16), torch.randn(2, 2, 8)
    seeing, blind = build(), build(text_dim=None)
    assert not torch.allclose(*(seeing(image, text).logits_Bhw for text in texts))
    assert torch.equal(*(blind(image, text).logits_Bhw for text in texts))


@pytest.mark.parametrize("detail", [4, 8])
def test_gradients_leave_the_mean_colours_of_squares_as_they_are(detail: int) -> None:
    image = torch.randn(2, 3, 16, 16, requires_grad=True)
    build(detail=detail)(image, torch.randn(2, 8)).logits_Bhw.sum().backward()
    assert image.grad is not None and float(image.grad.abs().max()) > 1e-3
    means = torch.nn.functional.avg_pool2d(image.grad, detail)
    assert float(means.abs().max()) < 1e-6


def test_without_that_they_do_not() -> None:
    image = torch.randn(2, 3, 16, 16, requires_grad=True)
    build()(image, torch.randn(2, 8)).logits_Bhw.sum().backward()
    assert image.grad is not None and float(torch.nn.functional.avg_pool2d(image.grad, 8).abs().max()) > 1e-5


def test_pooled_captions_do_not_see_padding() -> None:
    text, mask = torch.randn(2, 4, 8), torch.tensor([[True] * 4, [True, True, False, False]])
    padded = text.clone()
    padded[1, 2:] = torch.nan
    pooled = pool_text(padded, mask)
    assert torch.allclose(pooled[1], pool_text(text[1:, :2], None)[0])
    assert pooled.square().mean(1).tolist() == pytest.approx([1, 1], rel=1e-4)
