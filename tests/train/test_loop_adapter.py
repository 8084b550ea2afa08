"""Training by an adapter: what gets gradients, state and checkpoints, and that ZeRO and resuming change nothing."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file, save_file

from dataprep.io.errors import UserError
from tests.helpers import toys
from tests.helpers.toys import ToyTask, rows, run, two_ranks
from train.engine import Engine
from train.loop import build_model
from train.models.adapters.files import load_adapter, merge_adapter


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights to begin from."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("source") / "weights.safetensors"
    save_file(ToyTask().build().state_dict(), path)
    return str(path)


def adapted(source: str, **changes: Any) -> dict[str, Any]:
    return {"init": {"source": source}, "adapter": {"rank": 2, "alpha": 4.0}, "learning_rate": 0.05} | changes


@pytest.fixture(scope="module")
def whole(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of an adapter, without ZeRO."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, **adapted(source))
    return folder


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_only_the_adapter_has_gradients_and_optimizer_state(source: str, stage: int) -> None:
    config = toys.config(**adapted(source, zero_stage=stage))
    engine = Engine(build_model(ToyTask(), config, 0), config)
    assert set(engine.params) == {f"{layer}.lora_{half}.weight" for layer in (0, 3) for half in "AB"}
    assert engine.parameters == 2 * (8 + 33) * 2
    frozen = [parameter for parameter in engine.module.parameters() if not parameter.requires_grad]
    assert len(frozen) == 4
    engine.backward(engine(torch.randn(8, 8)).square().mean())
    engine.step(0.1)
    assert all(parameter.grad is None for parameter in frozen)
    held = sum(slot.numel() for state in engine.optimizer.state.values() for slot in state.values() if slot.numel() > 1)
    assert held == 3 * engine.parameters  # two moments and the EMA
    assert engine.buffers() == {}


def test_checkpoints_hold_the_adapter_alone(source: str, whole: Path) -> None:
    newest = whole / "checkpoints/step-00000020"
    names = {name for file in newest.glob("*.safetensors") for name in load_file(file)}
    assert names and all(".lora_" in name for name in names)


def test_the_export_is_the_merged_model_with_the_adapter_beside_it(source: str, whole: Path) -> None:
    adapter = load_adapter(str(whole / "export/adapter.safetensors"))
    assert adapter.settings["rank"] == 2 and set(adapter.scales.values()) == {2.0}
    base, exported = load_file(source), load_file(whole / "export/weights.safetensors")
    merged = merge_adapter(base, adapter, 1.0)
    assert exported.keys() == base.keys()
    assert all(torch.equal(exported[name], merged[name]) for name in base)
    assert not torch.equal(exported["0.weight"], base["0.weight"])
    assert torch.equal(exported["0.bias"], base["0.bias"])
    assert rows(whole)[-1]["loss"] < 0.9 * rows(whole)[0]["loss"]


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_gives_the_same_training(source: str, whole: Path, tmp_path: Path, stage: int) -> None:
    run(tmp_path, **adapted(source, zero_stage=stage))
    assert_same(tmp_path, whole)


def assert_same(ours: Path, theirs: Path, rel: float = 1e-5) -> None:
    """Logs, and the exported models and adapters, agree."""
    for one, other in zip(rows(ours), rows(theirs), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=rel)
    for name in ("weights", "adapter"):
        found, wanted = (load_file(folder / f"export/{name}.safetensors") for folder in (ours, theirs))
        assert found.keys() == wanted.keys()
        for key in wanted:
            torch.testing.assert_close(found[key], wanted[key], rtol=rel, atol=rel)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_killed_training_resumes_bit_by_bit(source: str, whole: Path, tmp_path: Path, stage: int) -> None:
    run(tmp_path / "killed", 8, **adapted(source, zero_stage=stage))
    run(tmp_path / "killed", 16, **adapted(source, zero_stage=stage))
    run(tmp_path / "killed", **adapted(source, zero_stage=stage))
    if stage == 0:
        assert rows(tmp_path / "killed") == rows(whole)
    assert_same(tmp_path / "killed", whole, 1e-9 if stage == 0 else 1e-5)


def test_bf16_weights_are_merged_into_the_whole_ones(source: str, tmp_path: Path) -> None:
    """ZeRO casts the frozen weights to bf16; the export begins from those of the source."""
    run(tmp_path, **adapted(source, zero_stage=2, precision="bf16", steps=4))
    exported = load_file(tmp_path / "export/weights.safetensors")
    assert torch.equal(exported["3.bias"], load_file(source)["3.bias"])


def test_an_adapter_needs_weights_and_a_task_that_names_its_component(source: str) -> None:
    with pytest.raises(ValueError, match="adapter is trained beside weights that exist; name them as init"):
        toys.config(adapter={"rank": 2})

    class Nameless:
        build, loss, export = ToyTask.build, ToyTask.loss, ToyTask.export

    with pytest.raises(UserError, match="adapter: Nameless names no component"):
        build_model(Nameless(), toys.config(**adapted(source)), 0)


@pytest.mark.slow  # starts two ranks
def test_two_ranks_give_the_same_training_under_every_stage(source: str, whole: Path, tmp_path: Path) -> None:
    cases: list[tuple[str, list[int | None], dict[str, Any]]] = [
        (f"zero{stage}", [None], adapted(source, zero_stage=stage)) for stage in (0, 2, 3)
    ]
    cases.append(("killed", [8, None], adapted(source, zero_stage=3)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(two_ranks, (port, str(tmp_path), cases), nprocs=2)
    for name, *_ in cases:
        assert_same(tmp_path / name, whole)
    assert rows(tmp_path / "killed") == rows(tmp_path / "zero3")
