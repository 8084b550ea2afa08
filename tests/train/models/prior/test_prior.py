"""The prior: every input counts, what is missing has learned stand-ins, and eight embeddings are learned by heart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.unets import make_inputs, predict, wake
from train.models.backbones import build_denoiser, count_parameters, denoiser_config
from train.models.base import Conditions
from train.models.prior.config import PriorConfig
from train.models.prior.presets import PRESETS
from train.models.prior.prior import EmbeddingPrior


def make_prior(**overrides: Any) -> EmbeddingPrior:
    config = denoiser_config("prior-micro", {"text_dim": 8, "image_channels": 6} | overrides)
    assert isinstance(config, PriorConfig)
    torch.manual_seed(0)
    return wake(EmbeddingPrior(config))


def prior_inputs(model: EmbeddingPrior, batch: int = 2) -> dict[str, Tensor]:
    given = make_inputs(model.config, batch=batch)
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(2, batch, model.config.image_channels, generator=generator)
    return given | {"x_BCHW": vectors[0, :, :, None, None], "pooled_text_BE": vectors[1]}


def test_every_input_changes_the_output() -> None:
    model = make_prior()
    given = prior_inputs(model)
    before = predict(model, given)
    assert before.shape == (2, 6, 1, 1) and before.dtype == torch.float32
    for name in ("x_BCHW", "log_snr_B", "text_BLD", "pooled_text_BE"):
        changed = predict(model, given | {name: given[name].flip(0)})
        assert float((changed - before).abs().amax(1).min()) > 1e-3, name


def test_the_order_of_the_tokens_counts() -> None:
    model = make_prior()
    given = prior_inputs(model)
    turned = predict(model, given | {"text_BLD": given["text_BLD"].flip(1)})
    assert float((turned - predict(model, given)).abs().max()) > 1e-3


def test_a_dropped_caption_is_not_read() -> None:
    model = make_prior()
    given = prior_inputs(model)
    dropped = given | {"text_keep_B": torch.tensor([True, False]), "pooled_text_BE": given["pooled_text_BE"].clone()}
    dropped["pooled_text_BE"][1] = 0
    other = dropped | {"text_BLD": given["text_BLD"].flip(2)}
    one, two = predict(model, dropped), predict(model, other)
    torch.testing.assert_close(one[1], two[1])
    assert float((one[0] - two[0]).abs().max()) > 1e-3
    none = {name: value for name, value in dropped.items() if name != "pooled_text_BE"}
    torch.testing.assert_close(predict(model, none)[1], one[1])  # zeros are as no vector


def test_padding_is_not_read() -> None:
    model = make_prior()
    given = prior_inputs(model)
    padded = given | {
        "text_BLD": torch.cat([given["text_BLD"], torch.full((2, 3, 8), torch.nan)], dim=1),
        "text_mask_BL": torch.cat([given["text_mask_BL"], torch.zeros(2, 3, dtype=torch.bool)], dim=1),
    }
    torch.testing.assert_close(predict(model, padded), predict(model, given))


def test_recomputing_blocks_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        model = make_prior().train().requires_grad_(True)
        if recompute:
            model.enable_recompute()
        predict(model, prior_inputs(model)).square().mean().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    assert all(value is not None for value in gradients[0].values())  # none is unused, which replicas would wait for
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lowres_BCHW": torch.zeros(2, 3, 1, 1)}, "backbone prior does not support the condition lowres_BCHW"),
        ({"x_BCHW": torch.zeros(2, 6, 2, 2)}, r"embedding of shape \(6, 2, 2\); this prior takes \(6, 1, 1\)"),
        ({"x_BCHW": torch.zeros(2, 5, 1, 1)}, r"embedding of shape \(5, 1, 1\)"),
    ],
)
def test_inputs_of_another_kind_are_refused(change: dict[str, Tensor], message: str) -> None:
    model = make_prior()
    with pytest.raises(ValueError, match=message):
        predict(model, prior_inputs(model) | change)


def test_text_is_required() -> None:
    with pytest.raises(ValueError, match="the prior needs text_BLD"):
        make_prior()(torch.zeros(1, 6, 1, 1), torch.zeros(1), Conditions())


def test_eight_embeddings_are_learned() -> None:
    torch.manual_seed(0)
    model = build_denoiser(denoiser_config("prior-micro", {"text_dim": 8, "image_channels": 6}))
    assert isinstance(model, EmbeddingPrior)
    given = prior_inputs(model, batch=8)
    target = torch.randn(8, 6, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        error = (predict(model, given) - target).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert float(error) < 0.02 * float(target.square().mean())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_built(name: str) -> None:
    with torch.device("meta"):
        assert isinstance(build_denoiser(PRESETS[name]), nn.Module)


def test_the_largest_preset_has_a_billion_parameters() -> None:
    assert 1.0e9 < count_parameters(PRESETS["prior-1b"]) < 1.4e9
