"""The GPU check: each of its parts at tiny sizes on a CPU, its options, and its full sizes as configs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import check_all, make_claims, parse_arguments
from benchmarks.gpu_parts import FULL, TINY, list_parts
from dataprep.io.model_imports import import_transformers
from train.models.backbones import denoiser_config
from train.tasks.diffusion_config import DiffusionTrainingConfig


def options(out: Path, *words: str) -> argparse.Namespace:
    return parse_arguments(["--device", "cpu", "--tiny", "--out", str(out), *words])


@pytest.mark.slow  # processes that import everything, a pipeline and a training that is killed
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    assert check_all(options(tmp_path, "--seconds", "1400")) == 0
    results = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert set(results) == {f"gpu_{name}" for name in list_parts(TINY)}
    for name, result in results.items():
        assert result["error"] is None and result["rows"] and result["machine"]["gpu"] is None, name
        assert result["claims"][0]["met"], name
    row = results["gpu_train_base"]["rows"][0]
    assert [step for step, _ in row["losses"]] == [2, 4, 6, 8, 10, 12] and 0 <= row["share_waiting"] < 1
    assert row["images_per_second"] > 0 and row["mfu"] is None
    assert results["gpu_embed"]["rows"][0]["captions_per_second"] > 0
    assert {row["stage"] for row in results["gpu_sampling"]["rows"]} == set(TINY.samples)
    resumed = results["gpu_resume"]["rows"][0]
    assert resumed["killed"] and 20 <= resumed["killed_at_step"] < 40 and resumed["largest_difference"] == 0


def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_arguments([])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "needs a CUDA GPU, and torch finds none" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cpu"], "add --tiny"),
        (["--device", "cpu", "--tiny", "--only", "trian"], "trian: no such part; take some of smoke"),
    ],
)
def test_wrong_options_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_part_that_fails_or_has_no_time_left_is_told_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(part: str, *_: object) -> dict[str, object]:
        return {"rows": [], "error": "out of memory" if part == "embed" else None, "seconds": 1.0}

    monkeypatch.setattr(gpu_check, "run_child", run)
    assert check_all(options(tmp_path, "--only", "embed", "score")) == 1
    failed, done = (json.loads((tmp_path / f"gpu_{part}.json").read_text()) for part in ("embed", "score"))
    assert failed["error"] == "out of memory" and not failed["claims"][0]["met"]
    assert done["error"] is None and done["claims"][0]["met"]
    assert check_all(options(tmp_path, "--only", "score", "--seconds", "1")) == 1
    assert json.loads((tmp_path / "gpu_score.json").read_text())["error"] == "left out: no time was left"


def test_claims_are_computed() -> None:
    row = {"model": "m", "share_waiting": 0.2, "mfu": 0.5, "losses": [[1, 2.0], [9, 1.0]], "largest_difference": 0.0}
    assert [claim["met"] for claim in make_claims("train", [row], None)] == [True, False, True, True, True]


def test_the_full_sizes_are_valid_and_those_of_the_paper() -> None:
    for settings in FULL.trainings.values():
        DiffusionTrainingConfig(**settings)
    assert [settings["model"] for settings in FULL.trainings.values()] == [
        "imagen-base-300m",
        "imagen-sr256-600m",
        "imagen-sr1024-400m",
    ]
    assert FULL.trainings["base"]["steps"] == 200
    for preset, resolution, low, _ in FULL.samples.values():
        config = denoiser_config(preset)
        assert config.lowres == (low is not None) and resolution % config.size_multiple() == 0
    transformers = import_transformers()
    with torch.device("meta"):
        model = transformers.T5EncoderModel(transformers.T5Config(feed_forward_proj="gated-gelu", **FULL.encoder))
    assert 4.6e9 < sum(param.numel() for param in model.parameters()) < 4.9e9  # T5-XXL's encoder
