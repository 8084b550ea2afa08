"""``init:`` in the config of a run: what it names, what planning refuses, and what is recorded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.config_loading import load_config
from pipeline.config_schema import config_schema
from pipeline.execution.plan import plan_run
from pipeline.stages.initial_weights import (
    describe_origin,
    find_origin,
    list_origin_files,
    read_origin,
    write_origin,
)
from pipeline.stages.text_encoder import find_encoder_origin, find_text_width, list_sources, locate_encoder
from pipeline.store.artifact import Artifact
from pipeline.store.run import Run
from tests.helpers.cascades import export
from tests.helpers.paths import ROOT
from tests.helpers.trained_runs import commit_stage, write_trained_run
from tests.helpers.unets import unet_config
from train.config import TrainConfig
from train.init_config import InitConfig
from train.tasks.t5_config import T5TrainingConfig

SMOKE = str(ROOT / "configs" / "smoke.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with the base of the smoke config and a wider one."""
    folder = tmp_path_factory.mktemp("runs")
    base = unet_config("micro-base", text_dim=32)
    return write_trained_run(folder / "one", base=base, wide=unet_config("micro-base", text_dim=32, channels=24))


def fingerprint(tmp_path: Path, *overrides: str) -> dict[str, str]:
    """Plans the smoke config; returns stage -> fingerprint."""
    config = load_config(SMOKE, list(overrides))
    return {item.stage.name: item.fingerprint for item in plan_run(config, Run(str(tmp_path / "new")))}


def test_a_name_is_short_for_a_source(finished: Run) -> None:
    assert TrainConfig.model_validate({"init": "x"}).init == InitConfig(source="x")
    branch = config_schema()["$defs"]["DiffusionTrainingConfig"]["properties"]["init"]
    assert "string" in str(branch) and "InitConfig" in str(branch)


@pytest.mark.parametrize(
    ("suffix", "stage", "expected"),
    [
        ("", "train.base", "train.base/" + "0" * 20),
        (":wide", "train.base", "train.wide/" + "1" * 20),
        (":train.wide", "train.sr", "train.wide/" + "1" * 20),
        ("@0000", "train.base", "train.base/" + "0" * 20),
        (":wide@1111", "train.base", "train.wide/" + "1" * 20),
    ],
)
def test_a_stage_of_a_run(finished: Run, suffix: str, stage: str, expected: str) -> None:
    origin = find_origin(InitConfig(source=finished.root + suffix), stage, "k")
    assert origin.path == finished.path("stages", *expected.split("/"), "export")
    assert (origin.stage, origin.fingerprint) == tuple(expected.split("/"))
    assert {Path(path).name for path in list_origin_files(origin)} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (":sr", r"stage train.sr is not finished there \(finished: train.base, train.wide, encoder\)"),
        ("@abcdef", r"stage train.base@abcdef is not finished there"),
        ("/nowhere", r"nothing is there; make that model first"),
    ],
)
def test_what_a_run_does_not_have_is_one_line(finished: Run, suffix: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"k={finished.root}{suffix}: {message}"):
        find_origin(InitConfig(source=finished.root + suffix), "train.base", "k")


def test_a_stage_of_an_export_and_its_licence(tmp_path: Path) -> None:
    folder = export(tmp_path / "exported")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    origin = find_origin(InitConfig(source=str(folder)), "train.base", "k")
    assert (origin.path, origin.licence) == (str(folder / "base"), "apache-2.0")
    assert find_origin(InitConfig(source=f"{folder}:sr"), "train.base", "k").path == str(folder / "sr")
    with pytest.raises(UserError, match=r"has no stage train\.sr256; it has train.base, train.sr, encoder"):
        find_origin(InitConfig(source=str(folder)), "train.sr256", "k")
    with pytest.raises(UserError, match=r"k\.weights=raw: an export has one kind"):
        find_origin(InitConfig(source=str(folder), weights="raw"), "train.base", "k")
    said = find_origin(InitConfig(source=str(folder), licence="mit"), "train.base", "k")
    assert said.licence == "mit"


def test_raw_weights_of_a_run_are_its_checkpoints(finished: Run) -> None:
    origin = find_origin(InitConfig(source=finished.root, weights="raw"), "train.base", "k")
    assert origin.path.endswith("/checkpoints") and str(origin.model).endswith("/export")


def test_a_hub_name_is_left_to_the_ranks() -> None:
    assert find_origin(InitConfig(source="hf://a/b"), "train.base", "k").path == "hf://a/b"


def test_fingerprint_covers_the_bytes_and_what_reads_them(finished: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished.root, tmp_path / "copy"))
    overrides = (f"encoder={{model: {copy}}}", f"train.base.init={copy}")
    before = fingerprint(tmp_path, *overrides)
    weights = copy / "stages/train.base" / ("0" * 20) / "export/model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"out.bias": tensors["out.bias"] + 1}, weights)
    after = fingerprint(tmp_path, *overrides)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"train.base", "sample", "evaluate", "report"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("train.base.init={run}:wide",),
            r"train\.base\.init=.*:wide: tensors do not fit the model: .* of another shape",
        ),
        (("train.base.init={run}", "train.base.model_overrides={{channels: 24}}"), r"there, .* here.*model_overrides"),
        (
            ("train.base.init={run}", "train.base.diffusion={{prediction: eps}}"),
            r"predicts v, diffusion.prediction is eps",
        ),
        (("train.base.init=nowhere",), r"train\.base\.init=nowhere: nothing is there"),
        (("train.base.init={run}", "encoder={{model: {other}}}"), r"of another shape \(text.norm.weight: 32 there, 16"),
    ],
)
def test_planning_refuses_what_does_not_fit(
    finished: Run, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    from tests.helpers.encoders import save_encoder

    other = save_encoder(tmp_path / "bert", "bert") if "{other}" in str(overrides) else ""
    texts = [text.format(run=finished.root, other=other) for text in overrides]
    with pytest.raises(UserError, match=message) as caught:
        fingerprint(tmp_path, f"encoder={{model: {finished.root}}}", *texts)
    assert "\n" not in str(caught.value)


def test_planning_accepts_what_the_config_allows(finished: Run, tmp_path: Path) -> None:
    texts = [f"encoder={{model: {finished.root}}}", "train.base.model_overrides={channels: 24}"]
    begun = fingerprint(tmp_path, *texts, f"train.base.init={{source: {finished.root}, reshaped: ['*']}}")
    plain = fingerprint(tmp_path, *texts)
    assert begun["train.base"] != plain["train.base"] and begun["train.sr32"] == plain["train.sr32"]


def test_the_encoder_of_a_run_or_an_export(finished: Run, tmp_path: Path) -> None:
    folder = finished.path("stages", "encoder", "e" * 20, "export")
    config = load_config(SMOKE, [f"encoder={{model: {finished.root}}}"])
    assert locate_encoder(finished.root) == folder and find_text_width(config.encoder) == 32
    assert f"{folder}/model.safetensors" in list_sources(config)
    exported = export(tmp_path / "exported")
    assert locate_encoder(str(exported)) == f"{exported}/encoder"
    assert locate_encoder("google/t5-v1_1-base") == "google/t5-v1_1-base"
    empty = Run(str(tmp_path / "empty"))
    storage.write_json(empty.path("run.json"), {"stages": {}})
    with pytest.raises(UserError, match=r"encoder\.model=.*empty: stage encoder is not finished in that run"):
        locate_encoder(empty.root)


def test_a_t5_needs_the_tokenizer_of_its_weights(finished: Run, tmp_path: Path) -> None:
    weights = Path(finished.path("stages", "encoder", "e" * 20, "export", "model.safetensors"))
    shutil.copy(weights, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"encoder\.pretrain\.init=.*has no tokenizer"):
        find_encoder_origin(T5TrainingConfig.model_validate({"init": str(tmp_path / "weights.safetensors")}))
    assert find_encoder_origin(T5TrainingConfig.model_validate({"init": str(weights.parent)})).path == str(
        weights.parent
    )
    assert find_encoder_origin(T5TrainingConfig.model_validate({"init": finished.root})).model == str(weights.parent)


def test_an_origin_is_recorded_and_described(finished: Run, tmp_path: Path) -> None:
    origin = find_origin(InitConfig(source=finished.root, licence="mit"), "train.base", "k")
    run = Run(str(tmp_path / "run"))
    write_origin(storage.join(run.stage_folder("train.base", "f"), "origin.json"), origin)
    found = read_origin(commit_stage(run, "train.base", "f"))
    assert found is not None
    text = describe_origin(found)
    assert text == f"{finished.root}, train.base ({'0' * 20}), ema weights, licence mit"
    assert read_origin(Artifact(finished.root, commit_stage(run, "clip", "g").manifest)) is None
