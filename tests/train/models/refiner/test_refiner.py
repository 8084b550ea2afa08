"""The network that predicts codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.unets import wake
from train.models.backbones import build_denoiser, denoiser_config
from train.models.base import Conditions
from train.models.refiner.backbone import make_hidden_codes
from train.models.refiner.config import PRESETS, RefinerConfig
from train.models.refiner.refiner import Refiner

MICRO = PRESETS["refiner-micro"].model_copy(update={"text_dim": 8})


def build(**changes: Any) -> Refiner:
    torch.manual_seed(0)
    return wake(Refiner(MICRO.model_copy(update=changes)))


def make_inputs(size: tuple[int, int] = (16, 16)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "codes": torch.randint(0, 17, (2, size[0] // 4, size[1] // 4), generator=generator),
        "log_snr_B": torch.tensor([-1.0, 2.0]),
        "text_BLD": torch.randn(2, 3, 8, generator=generator),
        "text_mask_BL": torch.tensor([[True] * 3, [True, True, False]]),
        "text_keep_B": torch.tensor([True, True]),
        "lowres_BCHW": torch.randn(2, 3, *size, generator=generator),
        "lowres_log_snr_B": torch.tensor([3.0, 3.0]),
    }


def predict(model: Refiner, given: dict[str, Tensor]) -> Tensor:
    conditions = {name: value for name, value in given.items() if name not in ("codes", "log_snr_B")}
    logits: Tensor = model(given["codes"], given["log_snr_B"], Conditions(**conditions))
    return logits


@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_logits_for_every_code_of_every_position(size: tuple[int, int]) -> None:
    assert predict(build(), make_inputs(size)).shape == (2, 16, size[0] // 4, size[1] // 4)


@pytest.mark.parametrize("name", ["codes", "log_snr_B", "text_BLD", "text_mask_BL", "text_keep_B", "lowres_BCHW"])
def test_every_input_matters(name: str) -> None:
    model, given = build(), make_inputs()
    before = predict(model, given)
    changed = given[name].roll(1, 0) if given[name].dtype != torch.bool else ~given[name]
    assert not torch.allclose(predict(model, given | {name: changed}), before)


def test_a_fresh_network_is_undecided() -> None:
    torch.manual_seed(0)
    assert not predict(Refiner(MICRO), make_inputs()).any()


def test_it_has_the_autoencoder_only_when_complete() -> None:
    complete, trained = Refiner(MICRO), Refiner(MICRO, complete=False)
    own = {name for name in complete.state_dict() if not name.startswith("autoencoder.")}
    assert own == set(trained.state_dict()) and len(own) < len(complete.state_dict())
    assert {name for name, param in complete.named_parameters() if param.requires_grad} == {
        name for name, _ in trained.named_parameters()
    }


def test_missing_and_unfit_inputs_are_refused() -> None:
    model, given = build(), make_inputs()
    with pytest.raises(ValueError, match="needs text_BLD, lowres_BCHW and lowres_log_snr_B"):
        predict(model, {name: value for name, value in given.items() if name != "lowres_BCHW"})
    with pytest.raises(ValueError, match="refiner does not support the condition pooled_text_BE"):
        predict(model, given | {"pooled_text_BE": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match=r"codes of \(4, 4\) for an image of \(8, 8\) pixels, 4 a code"):
        predict(model, given | {"lowres_BCHW": torch.zeros(2, 3, 8, 8)})
    with pytest.raises(ValueError, match="multiples of the window, 8"):
        predict(build(window=8, positions=False, attention="cross"), given)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch": 8}, "patch 8: a token is a code of 4 pixels"),
        ({"lowres": False}, "lowres true, no residual"),
        ({"learned_variance": True}, "codes are not denoised"),
        ({"image_embedding_dim": 4}, "a refiner takes none"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RefinerConfig(**(MICRO.model_dump() | changes))


def test_it_is_a_backbone_of_its_task() -> None:
    config = denoiser_config("refiner-micro", {"text_dim": 8})
    assert isinstance(build_denoiser(config), Refiner)
    codes = make_hidden_codes(MICRO, 3, 16)
    assert codes.shape == (3, 4, 4) and bool((codes == 16).all())
