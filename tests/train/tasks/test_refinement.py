"""Task `refinement`: it learns the codes from the small image, resumes exactly, and exports a whole stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dataprep.io.errors import UserError
from tests.helpers.pictures import TEXT, Pictures
from tests.helpers.toys import StopError, rows, stop_after
from tests.helpers.unets import wake
from train.init_config import InitConfig
from train.loader.sampler import SampleRandom
from train.loop import build_model, train
from train.models.export import load_stage
from train.models.refiner.refiner import Refiner
from train.models.vq.stage_folder import load_autoencoder
from train.tasks.refinement import RefinementTask
from train.tasks.refinement_config import RefinementTrainingConfig
from train.tasks.vq import VqTask
from train.tasks.vq_config import VqTrainingConfig

VQ = VqTrainingConfig(
    resolution=16,
    model="vq-micro",
    steps=60,
    batch_size=8,
    learning_rate=3e-3,
    warmup_steps=2,
    codebook_decay=0.9,
    ema_decay=0.9,
    zero_stage=0,
)
SETTINGS: dict[str, Any] = {
    "resolution": 16,
    "low_resolution": 8,
    "model": "refiner-micro",
    "autoencoder": "vq16",
    "steps": 20,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "log_every": 4,
    "checkpoint_every": 6,
    "zero_stage": 0,
    "ema_decay": 0.9,
}


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an autoencoder of `Pictures`."""
    folder = tmp_path_factory.mktemp("vq")
    train(VqTask(VQ, VQ.batch_size), VQ, Pictures(), str(folder), 0)
    return str(folder / "export")


def make_task(autoencoder: str, **changes: Any) -> tuple[RefinementTask, RefinementTrainingConfig]:
    config = RefinementTrainingConfig(**{**SETTINGS, **changes}).take_from({"vq16": VQ})
    return RefinementTask(config, TEXT, autoencoder), config


def run(autoencoder: str, folder: Path, stop: int | None = None, **changes: Any) -> None:
    task, config = make_task(autoencoder, **changes)
    try:
        train(task, config, Pictures(), str(folder), 0, Pictures(seed=1), stop_after(stop) if stop else None)
    except StopError:
        return


def test_it_learns_the_codes_from_the_small_image(autoencoder: str, tmp_path: Path) -> None:
    run(autoencoder, tmp_path, steps=100, log_every=10, checkpoint_every=100, sample_every=100)
    log = rows(tmp_path)
    assert log[0]["loss"] > 2 and log[-1]["loss"] < 0.75 * log[0]["loss"]
    assert log[-1]["accuracy"] > max(0.4, log[0]["accuracy"]) and log[-1]["validation_accuracy"] > 0.4
    assert (tmp_path / "samples/step-00000100.png").exists()


def test_the_export_is_a_whole_stage(autoencoder: str, tmp_path: Path) -> None:
    run(autoencoder, tmp_path)
    model, settings = load_stage(tmp_path / "export")
    assert isinstance(model, Refiner) and model.autoencoder is not None and settings["backbone"] == "refiner"
    theirs = load_autoencoder(autoencoder).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.autoencoder.state_dict().items())
    assert settings["diffusion"]["lowres_max_level"] == 0.3


def test_a_training_begins_from_an_export(autoencoder: str, tmp_path: Path) -> None:
    run(autoencoder, tmp_path, steps=2)
    task, config = make_task(autoencoder, init=InitConfig(source=str(tmp_path / "export")))
    exported, begun = load_file(tmp_path / "export/model.safetensors"), build_model(task, config, 1).state_dict()
    assert begun and all(torch.equal(value, exported[name]) for name, value in begun.items())
    assert set(exported) - set(begun) == {name for name in exported if name.startswith("autoencoder.")}


def test_a_grid_of_a_stage_that_is_trained_without_text_has_no_captions(autoencoder: str) -> None:
    batch = Pictures().first(4)
    batch["index_B"] = torch.as_tensor(batch["index"])
    other = batch | {"text_BLD": -3 * batch["text_BLD"]}
    for drop in (1.0, 0.1):
        task, _ = make_task(autoencoder, text_drop=drop)
        torch.manual_seed(0)
        weights = wake(task.build()).state_dict()
        one, two = (task.sample_grid(weights, given, 0) for given in (batch, other))
        assert np.array_equal(one, two) == (drop == 1)


@pytest.mark.parametrize("stop", [8, 16])
def test_a_resumed_training_is_the_same(autoencoder: str, tmp_path: Path, stop: int) -> None:
    for name, at in (("whole", None), ("torn", stop), ("torn", None)):
        run(autoencoder, tmp_path / name, at)
    assert rows(tmp_path / "torn") == rows(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "export/model.safetensors") for name in ("torn", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_batch_may_be_split(autoencoder: str) -> None:
    """The mean of the losses of two halves is the loss of the whole."""
    task, _ = make_task(autoencoder)
    model = task.build()
    torch.nn.init.normal_(model.get_parameter("out.weight"))
    batch = Pictures().first(8)
    losses = []
    for part in (slice(0, 8), slice(0, 4), slice(4, 8)):
        own = {name: value[part] for name, value in batch.items()}
        losses.append(task.loss(model, own, SampleRandom(0, 3, own["index"].tolist()))[0].item())
    assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-5)


def test_another_autoencoder_than_the_config_says_is_refused(autoencoder: str) -> None:
    config = RefinementTrainingConfig(**{**SETTINGS, "model_overrides": {"autoencoder": {"patch": 4, "widths": [8]}}})
    with pytest.raises(UserError, match="autoencoder=vq16: it was trained with another layout"):
        RefinementTask(config, TEXT, autoencoder)
