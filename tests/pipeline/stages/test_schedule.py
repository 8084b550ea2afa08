"""Stage `schedule`: a worker fits a trained stage's levels, with the small images that it is given."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dataprep.io import storage
from dataprep.io.errors import UserError
from eval.sampling.config import CascadeConfig, FitConfig, SamplingConfig, StageEntry
from eval.sampling.stage_sampler import LoadedStage
from pipeline.config_loading import load_config
from pipeline.runtime.shard_worker import ShardTask
from pipeline.stages import schedule
from pipeline.stages.graph import list_stages
from pipeline.store.artifact import Artifact, Manifest
from tests.helpers.contexts import make_context
from tests.helpers.packs import write_pack
from tests.helpers.plans import SMOKE
from train.diffusion.config import DiffusionConfig
from train.diffusion.schedules import alpha_sigma
from train.models.base import Conditions, DenoiserConfig


class SpreadDenoiser(nn.Module):
    """Predicts the exact clean image of data ~ N(0.4, 0.1^2); notes the small images."""

    def __init__(self, lowres: bool) -> None:
        super().__init__()
        self.config, self.small = DenoiserConfig(lowres=lowres), list[Tensor]()

    def forward(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        if conditions.lowres_BCHW is not None:
            self.small.append(conditions.lowres_BCHW)
        alpha, sigma = alpha_sigma(log_snr_B)
        return 0.4 + alpha * 0.01 / (alpha**2 * 0.01 + sigma**2) * (x_BCHW - alpha * 0.4)


def make_cascade(networks: dict[str, SpreadDenoiser]) -> SimpleNamespace:
    sampling = SamplingConfig(steps=3, guidance=1.0, threshold="none")
    entries = [
        StageEntry(name="base", resolution=16, path="."),
        StageEntry(name="sr", resolution=64, low_resolution=16, path="."),
    ]
    stages = [
        LoadedStage(
            entry.model_copy(update={"sampling": sampling}), networks[entry.name], DiffusionConfig(prediction="x0")
        )
        for entry in entries
    ]
    encoder = SimpleNamespace(encode=lambda captions: [np.ones((2, 3), np.float32) for _ in captions])
    return SimpleNamespace(stages=stages, encoder=encoder, device="cpu")


def test_a_worker_fits_the_stages_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = {"base": SpreadDenoiser(False), "sr": SpreadDenoiser(True)}
    monkeypatch.setattr(schedule, "build_cascade", lambda config, device: make_cascade(networks))
    fit = FitConfig(stages=("sr", "base"), samples=6, levels=24, batch_size=4)
    pack = write_pack(tmp_path / "p.parquet", 0, 64)
    cascade = CascadeConfig(stages=[StageEntry(name="base", resolution=16, path=".")], encoder="e")
    worker = schedule.ScheduleWorker(cascade, fit, [pack], 0)
    found = []
    for number in (0, 1):
        assert worker(ShardTask(number, {}, tmp_path)) == {"trajectories": 6}  # of eight held-out rows
        found.append(storage.read_json(str(tmp_path / f"{number:05d}.json")))
    assert [item["stage"] for item in found] == ["sr", "base"]
    for item in found:
        assert len(item["log_snrs"]) == 3 and item["log_snrs"][0] < -15
        assert 0 < item["cost"] < item["cost_of_even_steps"]
    assert [len(small) for small in networks["sr"].small[:: fit.levels]] == [4, 2]
    assert float(torch.cat(networks["sr"].small).std()) > 0.1  # images, not zeros


def test_a_pack_without_held_out_images_is_refused(tmp_path: Path) -> None:
    manifest = Manifest("pack", "p" * 20, {}, {}, [], {"validation": 0}, 1.0, {})
    ctx = make_context(tmp_path, "schedule", {"pack": Artifact(str(tmp_path), manifest)})
    with pytest.raises(UserError, match=r"sample\.fit: .*set select\.validation_fraction above 0"):
        schedule.run(ctx)


def test_the_stage_is_there_where_it_is_asked_for() -> None:
    plain, asked = (load_config(SMOKE, words) for words in ([], ["sample.fit={stages: [base]}"]))
    stages = {stage.name: stage for stage in list_stages(asked)}
    assert "schedule" in stages["sample"].inputs
    assert set(stages["schedule"].inputs) == {"encoder", "pack", "train.base", "train.sr32", "train.sr64"}
    without = {stage.name: stage for stage in list_stages(plain)}
    assert "schedule" not in without and "schedule" not in without["sample"].inputs
