"""A cascade with a refinement stage in its middle, by the command: a run, its export, and a rerun that does nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.sampling.cascade import Cascade
from tests.test_end_to_end import SMOKE, command, events, finish, manifests
from train.models.refiner.refiner import Refiner

SMALL = (
    "train.vq32={task: vq, resolution: 32, model: vq-micro, steps: 8, batch_size: 4, warmup_steps: 2, log_every: 2, "
    "sample_every: 4, adversarial: {width: 4, layers: 2, start: 2, ramp: 2}}",
    "train.sr32={task: refinement, resolution: 32, low_resolution: 16, autoencoder: vq32, model: refiner-micro, "
    "steps: 6, batch_size: 4, warmup_steps: 2, log_every: 2, sample_every: 3}",
    *("sample.show=2", "sample.evaluate=4", "sample.candidates=1"),
)
TRAINED = ("train.base", "train.vq32", "train.sr32", "train.sr64")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("vq") / "run"
    code, _, err = finish(command("run", SMOKE, f"run={folder}", *SMALL))
    assert code == 0, err
    return folder


def test_every_stage_ran(run: Path) -> None:
    found = manifests(run)
    assert set(TRAINED) <= set(found) and json.loads((run / "run.json").read_text())["status"] == "finished"
    inputs = {name: json.loads(found[name].read_text())["inputs"] for name in TRAINED}
    assert set(inputs["train.vq32"]) == {"pack", "embed"} and "train.vq32" in inputs["train.sr32"]
    log = [json.loads(line) for line in (found["train.vq32"].parent / "log.jsonl").read_text().splitlines()]
    assert log[-1]["adversarial_discriminator"] > 0 and 0 < log[-1]["codes_used"] <= 1
    assert 0 <= json.loads((run / "metrics.json").read_text())["composition"]["seen"]["colour"] <= 1


def test_a_rerun_does_nothing_and_a_change_of_the_autoencoder_trains_what_depends_on_it(run: Path) -> None:
    before = len(events(run))
    code, _, err = finish(command("run", SMOKE, f"run={run}", *SMALL))
    assert code == 0, err
    assert not [event for event in events(run)[before:] if event["event"] == "stage_started"]
    code, out, err = finish(command("run", SMOKE, f"run={run}", *SMALL, "train.vq32.commitment=0.5", "--dry-run"))
    assert code == 0, err
    lines = (out + err).splitlines()
    would_run = {name for name in (*TRAINED, "sample") for line in lines if f"{name} " in line and "would run" in line}
    assert would_run == {"train.vq32", "train.sr32", "sample"}


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_export_samples_without_the_run(run: Path, tmp_path: Path, weights: str) -> None:
    out = tmp_path / "model"
    code, _, err = finish(command("export", str(run), str(out), "--weights", weights))
    assert code == 0, err
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["base", "clip", "encoder", "sr32", "sr64"]
    cascade = Cascade.from_pretrained(out, device="cpu")
    assert isinstance(cascade.stages[1].model, Refiner)
    image = cascade("a red circle", seed=1).images[0]
    assert image.size == (64, 64)
    path = tmp_path / "cat.png"
    code, _, err = finish(command("sample", str(out), "a red circle", "--seed", "1", "--out", str(path)))
    assert code == 0, err
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(image))
