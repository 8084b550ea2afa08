"""Conditions of a denoiser."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.dits import dit_config
from tests.helpers.unets import make_inputs, predict, unet_config, wake
from train.models.backbones import build_denoiser, denoiser_config
from train.models.base import Conditions, DenoiserConfig, TextEncodingDenoiser, check_conditions
from train.models.unet.unet import UNet


def test_given_conditions_are_those_that_are_not_none() -> None:
    text, mask = torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool)
    assert Conditions(text, mask).given() == {"text_BLD", "text_mask_BL"}


def test_unsupported_conditions_are_refused_by_name() -> None:
    conditions = Conditions(image_embedding_BE=torch.zeros(1, 4))
    check_conditions(conditions, ("image_embedding_BE",), "dummy")
    with pytest.raises(
        ValueError, match=r"backbone dummy does not support the condition image_embedding_BE; .*text_BLD"
    ):
        check_conditions(conditions, ("text_BLD",), "dummy")


@pytest.mark.parametrize("name", ["pooled_text_BE", "region_masks_BRHW", "region_text_BRE"])
def test_the_unet_refuses_what_it_does_not_support(name: str) -> None:
    config = unet_config("micro-base")
    with pytest.raises(ValueError, match=f"backbone unet does not support the condition {name}"):
        predict(UNet(config), make_inputs(config) | {name: torch.zeros(2, 1)})


def test_the_unet_needs_text() -> None:
    with pytest.raises(ValueError, match="needs text_BLD"):
        UNet(unet_config("micro-base"))(torch.zeros(1, 3, 16, 16), torch.zeros(1), Conditions())


@pytest.mark.parametrize("config", [unet_config("micro-base"), dit_config("dit-micro-base")], ids=["unet", "dit"])
@pytest.mark.parametrize("masked", [True, False])
def test_text_encoded_once_gives_the_same_prediction(config: DenoiserConfig, masked: bool) -> None:
    torch.manual_seed(0)
    network, given = wake(build_denoiser(config)), make_inputs(config)
    text, keep = given["text_BLD"], torch.tensor([True, False])
    conditions = Conditions(text, given["text_mask_BL"], keep) if masked else Conditions(text)
    assert isinstance(network, TextEncodingDenoiser)
    encoded = network.encode_text(conditions)
    assert encoded.text_BLD is None and encoded.text_keep_B is None
    x, log_snr = given["x_BCHW"], given["log_snr_B"]
    assert torch.equal(network(x, log_snr, encoded), network(x, log_snr, conditions))
    other = network.encode_text(Conditions(text + 1))
    assert not torch.equal(network(x, log_snr, other), network(x, log_snr, encoded))


@pytest.mark.parametrize("preset", ["micro-base", "micro-sr", "dit-micro-base", "dit-micro-sr"])
def test_a_learned_variance_stands_behind_the_prediction(preset: str) -> None:
    """The low-resolution image, where the prediction is a difference to it, is no part of the variance."""
    torch.manual_seed(0)
    config = denoiser_config(preset, {"learned_variance": True, "text_dim": 8})
    given, fresh = make_inputs(config), build_denoiser(config)
    output_BCHW = predict(fresh, given)
    assert output_BCHW.shape == (2, 6, 16, 16)
    assert not bool(output_BCHW[:, 3:].any())  # zero at the start: between beta and the posterior's
    assert bool(output_BCHW[:, :3].any()) is config.lowres_residual
    assert bool(predict(wake(fresh), given)[:, 3:].any())
