"""Task `distillation`: what a student is given, that it learns and resumes exactly, and what its export says."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from pydantic import ValidationError
from safetensors.torch import load_file

from dataprep.io.errors import UserError
from dataprep.io.storage import read_json_lines
from eval.sampling.config import SamplingConfig, StageEntry, fix_sampling
from eval.sampling.options import override_sampling
from eval.sampling.stage_sampler import LoadedStage, SamplerInputs, pad_text, sample_stage
from tests.helpers.packs import make_embedding, write_embeddings, write_pack
from tests.helpers.students import (
    BASE,
    SR,
    Pack,
    export_teacher,
    make_loader,
    make_task,
    train_on_two_ranks,
    train_student,
)
from tests.helpers.toys import StopError, stop_after
from train.diffusion.config import DiffusionConfig
from train.loader.feed import to_device
from train.loader.loader import Batch
from train.loader.sampler import SampleRandom
from train.loader.shard_index import index_shards
from train.models.distilled import read_distilled
from train.models.export import load_stage
from train.tasks.distillation import DistillationTask, train_distillation
from train.tasks.distillation_config import DistillationTrainingConfig

VARIANCE = {"learned_variance": True}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """A pack shard of 64 images, and its embeddings of width 8."""
    folder = tmp_path_factory.mktemp("pack")
    return write_pack(folder / "p.parquet", 0, 64), write_embeddings(folder / "e.parquet", 0, 64)


def new_task(folder: Path, stage: dict[str, Any], **settings: Any) -> DistillationTask:
    return make_task(export_teacher(folder, stage), stage, **settings)


def first_batch(task: DistillationTask, pack: Pack) -> Batch:
    return to_device(make_loader(task, pack).first(8), torch.device("cpu"))


def teachers_loss(task: DistillationTask, pack: Pack) -> float:
    """Returns the loss of a student that is still its teacher."""
    model, _ = load_stage(task.teacher_folder)
    loss, _ = task.loss(model, first_batch(task, pack), SampleRandom(0, 0, range(8)))
    return float(loss)


@pytest.mark.parametrize("stage", [BASE, SR], ids=["base", "sr"])
def test_of_one_unguided_step_the_teacher_has_nothing_to_learn(
    tmp_path: Path, pack: Pack, stage: dict[str, Any]
) -> None:
    plain = {"teacher_steps": 1, "guidance": 1.0, "threshold": "none"}
    assert teachers_loss(new_task(tmp_path, stage, **plain), pack) < 1e-6
    for change in ({"teacher_steps": 3}, {"guidance": 3.0}, {"guidance": 3.0, "guidance_parallel": 0.0}):
        assert teachers_loss(new_task(tmp_path, stage, **(plain | change)), pack) > 1e-5, change


def test_every_step_of_the_student_gets_its_share_of_a_batch(tmp_path: Path, pack: Pack) -> None:
    task = new_task(tmp_path, BASE, steps=4)
    inputs = task.prepare(first_batch(task, pack), SampleRandom(0, 0, range(8)))["inputs"]
    values, counts = inputs.noised.log_snr_B.unique(return_counts=True)
    assert values.tolist() == task.levels_TS[:, 0].tolist() and min(counts.tolist()) >= 1
    assert bool(inputs.conditions.text_keep_B.all())


def test_the_guided_target_is_that_of_sampling(tmp_path: Path, pack: Pack) -> None:
    """The first step's target of pure noise is what the teacher samples with the same guidance, noise and caption."""
    task = new_task(tmp_path, BASE, steps=1, teacher_steps=5, guidance=2.5, threshold="static")
    batch = first_batch(task, pack)
    inputs = task.prepare(batch, SampleRandom(0, 0, range(8)))["inputs"]
    found = task.complete_inputs(inputs).noised
    model, settings = load_stage(task.teacher_folder)
    stage = LoadedStage(
        StageEntry(name="base", resolution=16, path="."), model, DiffusionConfig(**settings["diffusion"])
    )
    texts = [batch["text_BLD"][row, : int(batch["text_mask_BL"][row].sum())].numpy() for row in range(8)]
    wanted = SamplingConfig(steps=5, guidance=2.5, threshold="static")
    noise = found.x_BCHW
    sampled = sample_from(stage, wanted, SamplerInputs(pad_text(texts)), noise)
    torch.testing.assert_close(found.x0_BCHW, sampled, atol=1e-4, rtol=1e-3)


def sample_from(
    stage: LoadedStage, settings: SamplingConfig, inputs: SamplerInputs, noise: torch.Tensor
) -> torch.Tensor:
    from eval.sampling.stage_sampler import stage_denoiser
    from train.diffusion.objective import evaluation_log_snrs
    from train.diffusion.samplers import find_sampler

    levels = evaluation_log_snrs(stage.diffusion, settings.steps)
    return find_sampler(settings.sampler)(stage_denoiser(stage, settings, inputs, {}), noise, levels, torch.zeros)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_killed_training_resumes_as_if_nothing_had_happened(tmp_path: Path, pack: Pack, zero_stage: int) -> None:
    task = new_task(tmp_path, BASE, steps=2, teacher_steps=2)
    train_student(task, tmp_path / "whole", pack, zero_stage=zero_stage)
    with pytest.raises(StopError):
        train_student(task, tmp_path / "killed", pack, stop_after(8), zero_stage=zero_stage)
    train_student(task, tmp_path / "killed", pack, zero_stage=zero_stage)
    whole, killed = (read_json_lines(f"{tmp_path}/{name}/log.jsonl") for name in ("whole", "killed"))
    assert [row["loss"] for row in whole] == [row["loss"] for row in killed]
    one, other = (load_file(tmp_path / name / "export/model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_losses_do_not_depend_on_accumulation(tmp_path: Path, pack: Pack) -> None:
    task = new_task(tmp_path, SR, steps=2, teacher_steps=2)
    for parts in (1, 4):
        train_student(task, tmp_path / f"a{parts}", pack, steps=4, accumulation=parts)
    one, other = (read_json_lines(f"{tmp_path}/a{parts}/log.jsonl") for parts in (1, 4))
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in other], rel=1e-4)


@pytest.mark.slow
def test_two_ranks_and_sharded_parameters_train_the_same_student(tmp_path: Path, pack: Pack) -> None:
    teacher = export_teacher(tmp_path, BASE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(train_on_two_ranks, (port, str(tmp_path), teacher, pack), nprocs=2)
    train_student(make_task(teacher, BASE, steps=2), tmp_path / "alone", pack)
    alone = load_file(tmp_path / "alone/export/model.safetensors")
    for name in ("zero0", "zero3"):
        logs = [read_json_lines(f"{tmp_path}/{folder}/log.jsonl") for folder in (name, "alone")]
        assert [row["loss"] for row in logs[0]] == pytest.approx([row["loss"] for row in logs[1]], rel=1e-4)
        ours = load_file(tmp_path / name / "export/model.safetensors")
        assert max(float((ours[key] - alone[key]).abs().max()) for key in alone) < 1e-4


def mean_square(difference: torch.Tensor) -> float:
    return float(difference.square().mean())


def test_a_student_learns_and_says_how_it_is_sampled(tmp_path: Path, pack: Pack) -> None:
    teacher = export_teacher(tmp_path, BASE)
    settings: dict[str, Any] = {"teacher": teacher, "steps": 2, "teacher_steps": 3, "guidance": 2.0}
    loop = {"steps": 40, "batch_size": 16, "learning_rate": 3e-3, "warmup_steps": 5, "log_every": 10, "ema_decay": 0.9}
    config = DistillationTrainingConfig(**(BASE | loop | {"distillation": settings, "sample_every": 40}))
    index_shards([pack[0]], [pack[1]], config.pixel_columns()).write(str(tmp_path / "index"))
    result = train_distillation(str(tmp_path / "index"), True, config, str(tmp_path / "run"), 0)
    losses = [row["loss"] for row in read_json_lines(str(tmp_path / "run/log.jsonl"))]
    assert losses[-1] < 0.75 * losses[0] and result["validation_loss"] < losses[0]
    assert (tmp_path / "run/samples/step-00000040.png").exists()
    model, settings = load_stage(tmp_path / "run/export")
    distilled = read_distilled(settings)
    assert distilled is not None and distilled.guidance == 2.0
    assert distilled.teacher == load_stage(teacher)[1]["digest"] != settings["digest"]
    fixed = fix_sampling(SamplingConfig(lowres_level=0.3, steps=9), distilled)
    assert fixed["sampling"].count_evaluations() == 2 and fixed["sampling"].lowres_level == 0.3
    entry = StageEntry(name="base", resolution=16, path=".", **fixed)
    assert override_sampling(entry, {"steps": 2, "lowres_level": 0.1}).log_snrs == fixed["sampling"].log_snrs
    for key, value in (("steps", 5), ("guidance", 2.0), ("sampler", "deis"), ("spacing", "karras")):
        with pytest.raises(UserError, match=f"{key} {value}: stage base is distilled to {key}"):
            override_sampling(entry, {key: value})
    # It comes nearer to where its teacher arrives in many steps, and not to what its teacher gives in as few.
    inputs, seeds = SamplerInputs(pad_text([make_embedding(row) for row in range(16)])), [(1, row) for row in range(16)]
    network = load_stage(teacher)[0]
    of_teacher = LoadedStage(StageEntry(name="base", resolution=16, path="."), network, config.diffusion)
    goal = sample_stage(of_teacher, SamplingConfig(steps=6, guidance=2.0), inputs, seeds)
    few = sample_stage(of_teacher, SamplingConfig(steps=2, guidance=2.0), inputs, seeds)
    untrained = sample_stage(LoadedStage(entry, network, config.diffusion), entry.sampling, inputs, seeds)
    student = sample_stage(LoadedStage(entry, model, config.diffusion), entry.sampling, inputs, seeds)
    assert mean_square(student - goal) < 0.7 * mean_square(untrained - goal)
    assert mean_square(student - goal) < mean_square(student - few)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "distillation\n.*Field required"),
        (
            {"distillation": {"teacher": "x"}, "diffusion": {"weighting": "elbo"}},
            "weighting=elbo: the bound is of data",
        ),
        (
            {"distillation": {"teacher": "x"}, "diffusion": {"variance_weight": 0.1}, "model_overrides": VARIANCE},
            "variance_weight=0.1: a student is sampled without noise",
        ),
        ({"distillation": {"teacher": "x", "sampler": "unipc"}}, "take one of ddim, dpmpp_2m"),
        ({"distillation": {"teacher": "x"}, "half_size_steps": 5}, "half_size_steps=5: the teacher knows one size"),
        ({"distillation": {"teacher": "x", "steps": 0}}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_distilled_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DistillationTrainingConfig(**(BASE | keys))


def test_a_student_may_have_the_variance_of_its_teacher() -> None:
    config = DistillationTrainingConfig(**(BASE | {"distillation": {"teacher": "x"}, "model_overrides": VARIANCE}))
    assert config.denoiser_config().learned_variance and not config.diffusion.variance_weight
