"""Task `vq`: it learns to reconstruct, uses its codes, resumes exactly, and exports what it trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.pictures import TEXT, Pictures
from tests.helpers.toys import StopError, rows, stop_after
from train.adversary import make_adversary
from train.diffusion.objective import to_model_range
from train.init_config import InitConfig
from train.loader.sampler import SampleRandom
from train.loop import build_model, train
from train.models.vq.stage_folder import load_autoencoder
from train.tasks.vq import VqTask, peak_signal_to_noise
from train.tasks.vq_config import VqTrainingConfig

SETTINGS: dict[str, Any] = {
    "resolution": 16,
    "model": "vq-micro",
    "model_overrides": {"codes": 32},
    "codebook_decay": 0.9,
    "steps": 20,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "log_every": 4,
    "checkpoint_every": 6,
    "zero_stage": 0,
    "ema_decay": 0.9,
}


ADVERSARIAL: dict[str, Any] = {"width": 8, "layers": 2, "start": 4, "ramp": 4, "r1_every": 2, "weight": 0.1}


def run(folder: Path, stop: int | None = None, **changes: Any) -> dict[str, Any] | None:
    """Trains on `Pictures`; with ``stop``, kills it after that step."""
    config = VqTrainingConfig(**{**SETTINGS, **changes})
    adversary = make_adversary(config.adversarial, 3, TEXT, config.accumulation, 0)
    task = VqTask(config, config.batch_size, adversary)
    on_event = stop_after(stop) if stop else None
    try:
        return train(task, config, Pictures(), str(folder), 0, Pictures(seed=1), on_event)
    except StopError:
        return None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_a_training_begins_from_an_export_and_keeps_its_codes(whole: Path) -> None:
    config = VqTrainingConfig(**SETTINGS, init=InitConfig(source=str(whole / "export")))
    task, exported = VqTask(config, config.batch_size), load_file(whole / "export/model.safetensors")
    model = build_model(task, config, 1)
    assert all(torch.equal(value, exported[name]) for name, value in model.state_dict().items())
    task.codebook.begin(model)
    image_BCHW, random = to_model_range(Pictures().first(8)["pixels_16"]), SampleRandom(0, 0, range(8))
    output = model(image_BCHW)
    task.codebook.observe(output.latent_BDhw, output.codes_Bhw, random)
    assert task.codebook.end_update(True)["codes_revived"] < 1
    assert float((model.get_buffer("codebook") - exported["codebook"]).abs().max()) < 1  # moved on, not placed anew


def test_it_learns_to_reconstruct_with_most_of_its_codes(tmp_path: Path) -> None:
    run(tmp_path, steps=150, log_every=10, checkpoint_every=150, sample_every=150)
    log = rows(tmp_path)
    assert log[-1]["mse"] < 0.4 * log[0]["mse"] and log[-1]["codes_used"] > 0.2 and log[-1]["perplexity"] > 3
    assert (tmp_path / "samples/step-00000150.png").exists()
    image_BCHW = to_model_range(Pictures().first(8)["pixels_16"])
    model = load_autoencoder(tmp_path / "export")
    error = float((model.decode(model.encode(image_BCHW)) - image_BCHW).square().mean())
    flat = float((image_BCHW.mean((2, 3), keepdim=True) - image_BCHW).square().mean())
    assert error < 0.7 * flat and log[-1]["validation_psnr"] > 15


@pytest.fixture(scope="module")
def contested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted training with a discriminator."""
    folder = tmp_path_factory.mktemp("contested")
    run(folder, adversarial=ADVERSARIAL)
    return folder


@pytest.mark.parametrize("stop", [8, 16])
def test_with_a_discriminator_a_resumed_training_is_the_same(contested: Path, tmp_path: Path, stop: int) -> None:
    assert run(tmp_path, stop, adversarial=ADVERSARIAL) is None
    run(tmp_path, adversarial=ADVERSARIAL)
    assert rows(tmp_path) == rows(contested)
    ours, theirs = (load_file(folder / "export/model.safetensors") for folder in (tmp_path, contested))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_with_a_discriminator_accumulation_does_not_change_the_training(contested: Path, tmp_path: Path) -> None:
    run(tmp_path, adversarial=ADVERSARIAL, accumulation=2)
    for ours, theirs in zip(rows(tmp_path), rows(contested), strict=True):
        same = [key for key in theirs if key != "adversarial_diversity"]  # which is of a micro-batch
        assert {key: ours[key] for key in same} == pytest.approx({key: theirs[key] for key in same}, rel=1e-3, abs=1e-4)


def test_the_discriminator_begins_at_its_start(whole: Path, contested: Path) -> None:
    first, later = rows(contested)[0], rows(contested)[-1]
    assert first["adversarial_discriminator"] == first["adversarial_grad_norm"] == 0
    assert first["loss"] == rows(whole)[0]["loss"] and later["loss"] != rows(whole)[-1]["loss"]
    named = {"generator", "discriminator", "r1", "logit_real", "logit_made", "diversity", "grad_norm"}
    assert {f"adversarial_{name}" for name in named} <= set(later) and later["adversarial_grad_norm"] > 0


@pytest.mark.parametrize("stop", [8, 16])
def test_a_resumed_training_is_the_same(whole: Path, tmp_path: Path, stop: int) -> None:
    assert run(tmp_path, stop) is None
    run(tmp_path)
    assert rows(tmp_path) == rows(whole)
    ours, theirs = (load_file(folder / "export/model.safetensors") for folder in (tmp_path, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    saved = [load_file(folder / "checkpoints/step-00000020/companions.safetensors") for folder in (tmp_path, whole)]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[1]) and "codebook|counts" in saved[0]


def test_accumulation_does_not_change_the_training(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, accumulation=2)
    for ours, theirs in zip(rows(tmp_path), rows(whole), strict=True):
        assert {key: ours[key] for key in theirs} == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_validation_leaves_the_codebook_alone(tmp_path: Path) -> None:
    run(tmp_path / "often", validate_every=2)
    run(tmp_path / "once")
    ours, theirs = (load_file(tmp_path / name / "export/model.safetensors") for name in ("often", "once"))
    assert torch.equal(ours["codebook"], theirs["codebook"])


def test_the_loss_is_the_error_plus_the_weighted_commitment() -> None:
    config = VqTrainingConfig(**{**SETTINGS, "commitment": 0.5, "reconstruction": "l2"})
    task = VqTask(config, 8)
    model = task.build()
    task.codebook.begin(model)
    batch = Pictures().first(4)
    random = SampleRandom(0, 0, batch["index"].tolist())
    loss, metrics = task.loss(model, batch, random)
    output = model(to_model_range(batch["pixels_16"]))
    squared = (output.image_BCHW - to_model_range(batch["pixels_16"])).square().mean()
    commitment = (output.latent_BDhw - output.quantised_BDhw).square().mean()
    assert torch.allclose(loss, squared + 0.5 * commitment) and torch.allclose(metrics["mse"], squared)


def test_peak_signal_to_noise_of_a_known_error() -> None:
    one_BCHW = torch.zeros(2, 3, 4, 4)
    other_BCHW = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    assert peak_signal_to_noise(other_BCHW, one_BCHW).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)
