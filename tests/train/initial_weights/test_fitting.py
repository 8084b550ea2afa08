"""What of a source fits a model, what is refused, and what is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dataprep.io.errors import UserError
from tests.helpers import toys
from train.init_config import InitConfig
from train.initial_weights.fitting import compare_tensors, list_model_tensors, load_initial_weights
from train.loop import build_model
from train.models.backbones import build_denoiser, denoiser_config


class Shared(nn.Module):
    """Two layers that share a weight, as T5's embedding and output do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.last = nn.Linear(4, 3)


def weights() -> dict[str, Tensor]:
    return {
        "first.weight": torch.full((4, 4), 2.0),
        "last.weight": torch.full((3, 4), 3.0),
        "last.bias": torch.full((3,), 4.0),
    }


def write(folder: Path, tensors: dict[str, Tensor]) -> str:
    save_file(tensors, folder / "w.safetensors")
    return str(folder / "w.safetensors")


def begin(folder: Path, tensors: dict[str, Tensor], **allowed: Any) -> Shared:
    model = Shared()
    load_initial_weights(model, InitConfig(source=write(folder, tensors), **allowed), "train.base.init")
    return model


def test_what_fits_is_loaded_bit_by_bit_and_a_shared_tensor_once(tmp_path: Path) -> None:
    model = begin(tmp_path, {name: value.half() for name, value in weights().items()})
    assert torch.equal(model.second.weight, weights()["first.weight"]) and model.second.weight is model.first.weight
    assert torch.equal(model.last.bias, weights()["last.bias"])


def test_a_wrapper_in_front_of_every_name_does_not_matter(tmp_path: Path) -> None:
    model = begin(tmp_path, {f"unet.{name}": value for name, value in weights().items()})
    assert torch.equal(model.last.weight, weights()["last.weight"])


@pytest.mark.parametrize(
    ("change", "names", "remedy"),
    [
        (lambda w: w.pop("last.bias"), r"1 missing \(last.bias\)", {"missing": ["last.*"]}),
        (lambda w: w.update(extra=torch.ones(1)), r"1 unexpected \(extra\)", {"unexpected": ["ex*"]}),
        (
            lambda w: w.update({"last.weight": torch.ones(5, 4)}),
            r"1 of another shape \(last.weight: 5x4 there, 3x4 here\)",
            {"reshaped": ["last.weight"]},
        ),
    ],
)
def test_what_does_not_fit_is_named_and_refused_unless_allowed(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], names: str, remedy: dict[str, Any]
) -> None:
    tensors = weights()
    change(tensors)
    with pytest.raises(UserError, match=rf"train\.base\.init=.*do not fit the model: {names}.*init\.missing") as caught:
        begin(tmp_path, tensors)
    assert "\n" not in str(caught.value)
    model = begin(tmp_path, tensors, **remedy)
    assert torch.equal(model.first.weight, weights()["first.weight"])  # the rest is loaded
    for wrong in ("missing", "unexpected", "reshaped"):
        if wrong not in remedy:
            with pytest.raises(UserError, match="do not fit"):
                begin(tmp_path, tensors, **{wrong: ["*"]})


def test_a_source_of_which_nothing_fits_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    everything = {"missing": ["*"], "unexpected": ["*"], "reshaped": ["*"]}
    with pytest.raises(UserError, match="none of its tensors fits"):
        begin(tmp_path, {"other": torch.ones(2)}, **everything)


def test_a_tensor_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"last.bias is not finite"):
        begin(tmp_path, weights() | {"last.bias": torch.tensor([1.0, torch.nan, 2.0])})


def test_shapes_are_known_without_memory() -> None:
    config = denoiser_config("micro-base", {"text_dim": 8})
    with torch.device("meta"):
        known = list_model_tensors(build_denoiser(config))
    real = build_denoiser(config).state_dict()
    assert {tensor.names[0]: tensor.shape for tensor in known} == {name: tuple(t.shape) for name, t in real.items()}
    assert not compare_tensors(known, {name: tuple(t.shape) for name, t in real.items()}).describe()


def test_training_begins_from_the_weights(tmp_path: Path) -> None:
    """Model and EMA begin there; what the source lacks is what a training from nothing begins with."""
    torch.manual_seed(7)
    source = toys.ToyTask().build().state_dict()
    partly = {name: value for name, value in source.items() if not name.startswith("3.")}
    init = {"source": write(tmp_path, partly), "missing": ["3.*"]}
    begun = build_model(toys.ToyTask(), toys.config(init=init), seed=0).state_dict()
    fresh = build_model(toys.ToyTask(), toys.config(), seed=0).state_dict()
    for name in source:
        assert torch.equal(begun[name], partly.get(name, fresh[name])), name


def test_a_training_that_goes_on_by_its_own_checkpoint_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    torch.manual_seed(7)
    init = {"source": write(tmp_path, toys.ToyTask().build().state_dict())}
    toys.run(tmp_path / "whole", init=init)
    toys.run(tmp_path / "resumed", 8, init=init)
    toys.run(tmp_path / "resumed", init=init)
    toys.run(tmp_path / "nothing")
    assert toys.rows(tmp_path / "whole") == toys.rows(tmp_path / "resumed") != toys.rows(tmp_path / "nothing")
