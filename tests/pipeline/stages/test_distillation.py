"""Stages of task `distillation`: the teacher that planning finds, what it refuses, and what is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.config import RunConfig
from pipeline.config_loading import load_config
from pipeline.execution.plan import plan_run
from pipeline.stages import distillation, pack_training
from pipeline.stages.distillation import DistillationStageConfig, list_sources
from pipeline.stages.initial_weights import ORIGIN_FILE
from pipeline.store.artifact import Artifact, Manifest
from pipeline.store.run import Run
from tests.helpers.contexts import make_context
from tests.helpers.plans import SMOKE
from tests.helpers.trained_runs import write_trained_run
from tests.helpers.unets import unet_config
from train.loader.mix_config import DataMix

PLAIN = ["sample.stages.base={}", "train.base.task=distillation"]


@pytest.fixture
def teacher(tmp_path: Path) -> Run:
    """A run with the base of the smoke config and a wider one."""
    base, wide = (unet_config("micro-base", text_dim=32, **more) for more in ({}, {"channels": 24}))
    return write_trained_run(tmp_path / "teacher", base=base, wide=wide)


def make_config(tmp_path: Path, source: str, *overrides: str) -> RunConfig:
    section = f"train.base.distillation={{teacher: '{source}', steps: 2, guidance: 2.0}}"
    return load_config(SMOKE, [*PLAIN, section, f"run={tmp_path}/new", *overrides])


def test_the_bytes_of_the_teacher_count(teacher: Run, tmp_path: Path) -> None:
    config = make_config(tmp_path, teacher.root)
    files = list_sources(config, "base")
    assert {Path(path).name for path in files} == {"config.json", "model.safetensors"} and "train.base" in files[0]
    wide = list_sources(
        make_config(tmp_path, f"{teacher.root}:wide", "train.base.model_overrides={channels: 24}"), "base"
    )
    assert "train.wide" in wide[0]

    def fingerprint() -> str:
        plan = plan_run(config, Run(config.run))
        return next(item.fingerprint for item in plan if item.stage.name == "train.base")

    before = fingerprint()
    weights = next(path for path in files if path.endswith(".safetensors"))
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)
    assert fingerprint() != before


@pytest.mark.parametrize(
    ("suffix", "overrides", "message"),
    [
        ("/nowhere", [], r"train\.base\.distillation\.teacher=.*nowhere: nothing is there"),
        (":sr64", [], r"stage train\.sr64 is not finished there"),
        (":wide", [], r"train\.base\.distillation\.teacher=.*:wide: .*another shape"),
        ("", ["train.base.diffusion.prediction=eps"], r"has diffusion\.prediction v, the stage eps"),
        ("", ["train.base.diffusion.schedule=flow"], r"has diffusion\.schedule cosine, the stage flow"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    teacher: Run, tmp_path: Path, suffix: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        list_sources(make_config(tmp_path, teacher.root + suffix, *overrides), "base")


def test_weights_without_a_config_are_no_teacher(teacher: Run, tmp_path: Path) -> None:
    save_file(
        {"a": next(iter(load_file(list_sources(make_config(tmp_path, teacher.root), "base")[1]).values()))},
        tmp_path / "w.safetensors",
    )
    with pytest.raises(UserError, match="is no exported stage; name a run"):
        list_sources(make_config(tmp_path, f"{tmp_path}/w.safetensors"), "base")


def test_the_run_itself_is_a_teacher_by_its_fingerprint_alone(teacher: Run, tmp_path: Path) -> None:
    for source in (teacher.root, f"{teacher.root}:base"):
        with pytest.raises(UserError, match="is this run, whose stage the student will be; name the teacher RUN@"):
            list_sources(make_config(tmp_path, source, f"run={teacher.root}"), "base")
    assert list_sources(make_config(tmp_path, f"{teacher.root}@0000", f"run={teacher.root}"), "base")


@pytest.mark.parametrize("init", [None, "init"])
def test_ranks_get_the_place_of_the_teacher(
    teacher: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str | None
) -> None:
    overrides = [] if init is None else [f"train.base.init={teacher.root}:base"]
    config = make_config(tmp_path, teacher.root, *overrides)
    ctx = make_context(tmp_path / "new", "train.base", {})
    ctx.config = DistillationStageConfig.from_run(config, train=config.train["base"], mix=DataMix())
    pack = Artifact("", Manifest("pack", "f", {}, {}, [], {"validation": 3}, 1.0, {}))
    ctx.inputs.pack, ctx.inputs.embed = pack, pack
    called: dict[str, Any] = {}
    monkeypatch.setattr(pack_training, "write_shard_index", lambda *arguments: storage.write_json(arguments[1], {}))
    monkeypatch.setattr(
        pack_training,
        "train_on_cluster",
        lambda ctx, rank, arguments, config, seed: called.update(rank=rank, config=config),
    )
    distillation.run(ctx)
    assert called["rank"] is distillation.train_rank
    assert called["config"].distillation.teacher.endswith("/export")
    origin = storage.read_json(ctx.path(ORIGIN_FILE))
    assert (origin["stage"], origin["run"]) == ("train.base", teacher.root)
