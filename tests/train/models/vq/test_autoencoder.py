"""The autoencoder with a codebook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.unets import wake
from train.models.vq.autoencoder import VqAutoencoder, VqOutput
from train.models.vq.config import PRESETS, vq_config


def build(preset: str = "vq-micro") -> VqAutoencoder:
    """Returns an autoencoder none of whose layers is zero, with a random codebook."""
    torch.manual_seed(0)
    model = wake(VqAutoencoder(PRESETS[preset]))
    model.codebook.normal_()
    return model


@pytest.mark.parametrize("preset", ["vq-micro", "vq-tiny"])
def test_shapes(preset: str) -> None:
    model, image_BCHW = build(preset), torch.rand(2, 3, 16, 24) * 2 - 1
    output: VqOutput = model(image_BCHW)
    assert output.image_BCHW.shape == image_BCHW.shape and output.codes_Bhw.shape == (2, 4, 6)
    assert output.codes_Bhw.dtype == torch.int64
    assert torch.equal(model.decode(model.encode(image_BCHW)), model.decode(output.codes_Bhw))
    assert torch.allclose(model.decode(output.codes_Bhw), output.image_BCHW, atol=1e-5)


def test_codes_are_the_nearest_entries() -> None:
    model, latent_BDhw = build(), torch.randn(2, 4, 3, 5)
    codes_Bhw = model.nearest_codes(latent_BDhw)
    for row, y, x in [(0, 0, 0), (1, 2, 4), (0, 1, 3)]:
        distances = (model.codebook - latent_BDhw[row, :, y, x]).norm(dim=1)
        assert codes_Bhw[row, y, x] == distances.argmin()
    assert torch.equal(model.look_up(codes_Bhw)[1, :, 2, 4], model.codebook[codes_Bhw[1, 2, 4]])


def test_gradients_pass_the_codebook_unchanged() -> None:
    """The encoder's output gets the gradient of what the decoder was given."""
    model = build().requires_grad_(True)
    given: list[Any] = []
    model.up[0].register_full_backward_hook(lambda module, into, out: given.extend(into))
    output: VqOutput = model(torch.rand(1, 3, 8, 8) * 2 - 1)
    output.latent_BDhw.retain_grad()
    output.image_BCHW.square().sum().backward()
    assert output.latent_BDhw.grad is not None and torch.equal(output.latent_BDhw.grad, given[0])
    assert all(param.grad is not None and bool(param.grad.any()) for param in model.parameters())


def test_a_crop_is_encoded_and_decoded_as_within_the_whole_image() -> None:
    """Away from its edges: no layer sees more than its neighbourhood, so training on crops suits whole images."""
    model, image_BCHW = build(), torch.rand(1, 3, 64, 64) * 2 - 1
    whole, part = model.encode_latent(image_BCHW), model.encode_latent(image_BCHW[:, :, 8:56, 8:56])
    assert torch.allclose(part[:, :, 5:7, 5:7], whole[:, :, 7:9, 7:9], atol=1e-5)
    latent_BDhw = torch.randn(1, 4, 24, 24)
    whole, part = model.decode_latent(latent_BDhw), model.decode_latent(latent_BDhw[:, :, 4:20, 4:20])
    assert torch.allclose(part[:, :, 30:34, 30:34], whole[:, :, 46:50, 46:50], atol=1e-5)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image of \(8, 10\) pixels; height and width must be multiples of 4"):
        build().encode(torch.zeros(1, 3, 8, 10))


def test_the_codebook_is_stored_but_not_trained_by_gradients() -> None:
    model = VqAutoencoder(vq_config("vq-micro"))
    assert "codebook" in model.state_dict() and not isinstance(model.codebook, nn.Parameter)
    assert not model.codebook.any()  # by which an untrained one is told
