"""Stage caption: there only if the config names a model, and asked only for what is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from pipeline.config import RunConfig
from pipeline.config_loading import load_config
from pipeline.stages.caption import CaptionStageConfig, list_sources
from pipeline.stages.graph import list_stages
from pipeline.stages.train import TrainStageConfig
from tests.helpers.plans import SMOKE

SOURCES = {
    "web": {"source": "table", "path": "list.csv", "weight": 7, "captions": {"caption": 1, "long": 3}},
    "own": {"source": "folder", "path": "photos", "weight": 2, "captions": {"caption": 1}},
    "tars": {"source": "webdataset", "path": "set.tar", "weight": 1},
}


def load(*overrides: str, model: str = "models/vlm") -> RunConfig:
    return load_config(SMOKE, [f"caption.model={model}", *overrides])


def several(*overrides: str) -> RunConfig:
    return load(f"listing={json.dumps({'sources': SOURCES})}", *overrides)


def stage_config(config: RunConfig) -> CaptionStageConfig:
    found = next(stage.config for stage in list_stages(config) if stage.name == "caption")
    assert isinstance(found, CaptionStageConfig)
    return found


def test_without_a_model_there_is_no_stage() -> None:
    stages = {stage.name: stage for stage in list_stages(load_config(SMOKE))}
    assert "caption" not in stages and stages["pack"].inputs == ("download", "select")
    stages = {stage.name: stage for stage in list_stages(load("pack.captions=[long, short]"))}
    assert stages["caption"].inputs == ("download", "select")
    assert stages["pack"].inputs == ("download", "select", "caption")


def test_each_source_gets_what_it_is_trained_on() -> None:
    config = several("pack.captions=[short]")
    assert stage_config(config).names == {"web": ("long",), "own": (), "tars": ("short",)}
    train = next(stage.config for stage in list_stages(config) if stage.name == "train.base")
    assert isinstance(train, TrainStageConfig)
    assert train.mix.captions["web"] == {"caption": 1, "long": 3} and train.mix.captions["tars"]["short"] == 1


def test_how_often_a_caption_is_trained_on_changes_the_training_alone() -> None:
    one, other = (load(f"pack.captions={{caption: 1, long: {weight}}}") for weight in (1, 5))
    pairs = zip(list_stages(one), list_stages(other), strict=True)
    changed = [stage.name for stage, again in pairs if stage.config.to_json() != again.config.to_json()]
    assert changed == ["train.base", "train.sr32", "train.sr64"]


def test_captions_that_nothing_is_trained_on_are_refused() -> None:
    with pytest.raises(UserError, match=r"caption.model=models/vlm: nothing is trained on .*\(long, short\)"):
        load()
    assert stage_config(load("pack.captions={tags: 1}", "caption.prompts={tags: {prompt: List tags}}")).names == {
        "": ("tags",)
    }


def test_the_models_files_count(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    (tmp_path / "model.safetensors").touch()
    config = load("pack.captions=[long]", model=str(tmp_path))
    assert list_sources(config) == [f"{tmp_path}/config.json", f"{tmp_path}/model.safetensors"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="a model of type bert does not describe images"):
        list_sources(config)
    assert list_sources(load("pack.captions=[long]")) == []  # a name on a hub
