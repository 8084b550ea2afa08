"""Adapters on the command line: those of a run, and merged at export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dataprep.io.errors import UserError
from dataprep.text.encoder import TextEncoder
from dataprep.text.learned_tokens import save_tokens
from eval.sampling.adapters import AdapterChoice, apply_adapters
from eval.sampling.config import read_cascade, write_cascade
from pipeline.inference.export import merge_adapters
from pipeline.inference.model_card import _describe_adapters
from pipeline.inference.sample import find_adapters
from pipeline.store.run import Run
from tests.eval.sampling.test_adapters import write_adapter
from tests.helpers.cascades import BASE, SR, export, trained
from tests.helpers.encoders import save_encoder
from tests.helpers.trained_runs import commit_stage
from train.models.adapters.files import load_adapter, merge_adapter


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that trained an adapter for its base and for its super-resolution stage."""
    run = Run(str(tmp_path_factory.mktemp("runs") / "lora"))
    for stage, config in {"train.base": BASE, "train.sr": SR}.items():
        folder = Path(run.stage_folder(stage, "f" * 20)) / "export"
        folder.mkdir(parents=True)
        write_adapter(folder / "adapter.safetensors", trained(config))
        commit_stage(run, stage, "f" * 20)
    commit_stage(run, "pack", "e" * 20)
    return run


def test_a_run_stands_for_all_the_adapters_that_it_trained(run: Run) -> None:
    found = find_adapters([f"{run.root}:0.5", f"sr={run.root}", "a.safetensors"])
    assert [(choice.stage, choice.weight) for choice in found] == [
        ("base", 0.5),
        ("sr", 0.5),
        ("sr", 1.0),
        (None, 1.0),
    ]
    assert found[0].path == run.path("stages", "train.base", "f" * 20, "export", "adapter.safetensors")
    with pytest.raises(UserError, match=r"that run trained no such adapter \(it has: base, sr\)"):
        find_adapters([f"top={run.root}"])


def test_export_merges_adapters_into_their_stages(run: Run, tmp_path: Path) -> None:
    folder = export(tmp_path / "exported")
    before = {name: load_file(folder / name / "model.safetensors") for name in ("base", "sr")}
    (choice,) = find_adapters([f"base={run.root}:0.8"])
    assert merge_adapters(folder, [choice]) == [AdapterChoice(choice.path, 0.8, "base")]
    after = {name: load_file(folder / name / "model.safetensors") for name in before}
    wanted = merge_adapter(before["base"], load_adapter(choice.path), 0.8)
    assert all(torch.equal(after["base"][name], wanted[name]) for name in wanted)
    assert any(not torch.equal(after["base"][name], before["base"][name]) for name in wanted)
    assert all(torch.equal(after["sr"][name], before["sr"][name]) for name in before["sr"])
    assert merge_adapters(folder, []) == []


def test_the_card_names_what_was_merged() -> None:
    assert _describe_adapters([]) == []
    text = "\n".join(_describe_adapters([AdapterChoice("/x/cat.safetensors", 0.8, "base")]))
    assert "## Adapters in the weights" in text and "| base | cat.safetensors | 0.8 |" in text


def test_export_merges_what_the_text_encoder_learned(tmp_path: Path) -> None:
    folder = export(tmp_path / "exported")
    (folder / "encoder").rmdir()
    source = save_encoder(tmp_path / "t5", "t5")
    write_cascade(folder, read_cascade(folder).model_copy(update={"encoder": source}))  # only named, as a hub's
    before = {name: (folder / name / "model.safetensors").read_bytes() for name in ("base", "sr")}
    encoder = TextEncoder.from_folder(source)
    adapter = write_adapter(tmp_path / "lora.safetensors", TextEncoder.from_folder(source).model, "text_encoder")
    save_tokens(tmp_path / "words.safetensors", {"zwx": torch.ones(32)})
    choices = [AdapterChoice(adapter, 0.5), AdapterChoice(str(tmp_path / "words.safetensors"))]
    merged = merge_adapters(folder, choices)
    assert [choice.stage for choice in merged] == ["encoder", "encoder"]
    assert read_cascade(folder).encoder == "encoder"
    apply_adapters(choices, [], lambda: encoder)
    texts = ["a zwx circle", "a red square"]
    for ours, wanted in zip(
        TextEncoder.from_folder(str(folder / "encoder")).encode(texts), encoder.encode(texts), strict=True
    ):
        np.testing.assert_array_equal(ours, wanted)
    assert np.abs(encoder.encode(texts)[1] - TextEncoder.from_folder(source).encode(texts)[1]).max() > 1e-3
    assert before == {name: (folder / name / "model.safetensors").read_bytes() for name in before}
