"""The stage of a prior: which code its fingerprint covers, and initial weights that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from pipeline.config_loading import load_config
from pipeline.stages import prior, train
from pipeline.stages.denoiser_training import list_denoiser_sources
from pipeline.stages.graph import list_stages
from pipeline.stages.prior import PriorTrainStageConfig
from pipeline.stages.train import TrainStageConfig
from pipeline.store.fingerprint import collect_dependencies
from tests.helpers.cascades import trained
from tests.helpers.paths import ROOT
from tests.helpers.priors import WITH_PRIOR
from train.diffusion.config import DiffusionConfig
from train.models.backbones import denoiser_config
from train.models.export import save_stage

SMOKE = str(ROOT / "configs" / "smoke.yaml")


def test_a_stage_of_each_task_with_its_own_config() -> None:
    stages = {stage.name: stage for stage in list_stages(load_config(SMOKE, WITH_PRIOR))}
    assert isinstance(stages["train.prior"].config, PriorTrainStageConfig)
    assert isinstance(stages["train.base"].config, TrainStageConfig)
    assert stages["train.prior"].inputs == ("pack", "embed") == stages["train.base"].inputs
    assert stages["pack"].inputs == ("download", "select", "score") and "train.prior" in stages["sample"].inputs
    plain = {stage.name: stage for stage in list_stages(load_config(SMOKE))}
    assert plain["pack"].inputs == ("download", "select")


def test_a_fingerprint_covers_the_code_of_its_own_task() -> None:
    code, _ = collect_dependencies(prior.run, [PriorTrainStageConfig])
    assert "train.tasks.prior:train_prior" in code and "train.tasks.diffusion:train_diffusion" not in code
    code, _ = collect_dependencies(train.run, [TrainStageConfig])
    assert "train.tasks.prior:train_prior" not in code and "train.tasks.diffusion:train_diffusion" in code


def test_initial_weights_must_fit(tmp_path: Path) -> None:
    for name, width in (("same", 64), ("narrow", 16)):
        layout = denoiser_config("prior-micro", {"text_dim": 32, "image_channels": width})
        x0 = DiffusionConfig(prediction="x0").model_dump(mode="json")
        save_stage(tmp_path / name, trained(layout), layout, x0, trained_steps=5)

    def sources(name: str) -> list[str]:
        config = load_config(SMOKE, [*WITH_PRIOR, f"train.prior.init={tmp_path / name}"])
        return list_denoiser_sources(config, "prior")

    assert len(sources("same")) == 2
    with pytest.raises(UserError, match=r"train\.prior\.init=.*narrow"):
        sources("narrow")
