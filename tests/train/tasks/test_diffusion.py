"""Task `diffusion` in the training loop: stages learn, and their exports load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from dataprep.io.errors import UserError
from dataprep.io.storage import read_json_lines
from tests.helpers.packs import write_embeddings, write_pack
from tests.helpers.toys import short_config
from train.config import TrainConfig
from train.loader.loader import Loader
from train.loader.sampler import SampleRandom
from train.loader.shard_index import index_shards
from train.loop import train
from train.models.export import load_stage
from train.tasks.diffusion import DiffusionTask, spread_times, train_diffusion
from train.tasks.diffusion_config import DiffusionStageConfig, DiffusionTrainingConfig

X0 = {"prediction": "x0", "lowres_max_level": 0.3}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A pack shard of 64 images, and its embeddings of width 8."""
    folder = tmp_path_factory.mktemp("pack")
    return write_pack(folder / "p.parquet", 0, 64), write_embeddings(folder / "e.parquet", 0, 64)


@pytest.mark.parametrize(
    ("changes", "batch"),
    [
        ({"resolution": 16, "model": "micro-base"}, 16),
        ({"resolution": 64, "low_resolution": 16, "crop": 32, "model": "micro-sr", "diffusion": X0}, 8),
        ({"resolution": 16, "model": "dit-micro-base", "diffusion": {"prediction": "x0"}}, 16),
    ],
)
def test_diffusion_stage_learns_and_exports(
    tmp_path: Path, pack: tuple[str, str], changes: dict[str, Any], batch: int
) -> None:
    stage = DiffusionStageConfig(**changes)
    task = DiffusionTask(stage, text_dim=8)
    loaders = [
        Loader([pack[0]], [pack[1]], task.columns, split, 0, batch, stage.crop) for split in ("train", "validation")
    ]
    config = TrainConfig(
        **(
            short_config(30, batch, 3e-3).model_dump()
            | {"sample_every": 20, "activation_checkpointing": True, "peak_tflops": 1e-3}
        )
    )
    result = train(task, config, loaders[0], str(tmp_path), 0, loaders[1])
    log = read_json_lines(f"{tmp_path}/log.jsonl")
    by_noise = [log[-1][f"validation_loss_noise_{quarter}of4"] for quarter in (1, 2, 3, 4)]
    assert min(by_noise) < log[-1]["validation_loss"] < max(by_noise)
    assert all(row["mfu"] > 0 for row in log)
    size = stage.crop or stage.resolution
    grid = cv2.imread(str(tmp_path / "samples/step-00000020.png"))
    assert grid is not None and grid.shape == (2 * size, 8 * size, 3) and grid[size:].mean() != grid[:size].mean()
    assert log[-1]["loss"] < log[0]["loss"] and result["validation_loss"] is not None
    model, settings = load_stage(tmp_path / "export")
    assert (
        settings["trained_steps"] == 30
        and settings["backbone"] == ("dit" if "dit" in stage.model else "unet")
        and settings["model"]["text_dim"] == 8
    )
    assert model.config == task.denoiser_config()


def test_times_are_spread_evenly() -> None:
    times = spread_times(SampleRandom(3, 5, range(160, 192))).sort().values
    gaps = times.diff()
    assert float(gaps.max()) < 2.7 / 32 and float(times[0]) < 0.09 and float(times[-1]) > 0.91
    part = spread_times(SampleRandom(3, 5, [170]))
    assert part in spread_times(SampleRandom(3, 5, range(160, 192)))
    many = torch.cat([spread_times(SampleRandom(0, step, range(step * 4, step * 4 + 4))) for step in range(500)])
    assert abs(float(many.mean()) - 0.5) < 0.02


def test_training_on_no_rows_is_refused(tmp_path: Path) -> None:
    config = DiffusionTrainingConfig(resolution=16, steps=1, batch_size=2)
    files = [write_pack(tmp_path / "p", 0, 0)], [write_embeddings(tmp_path / "e", 0, 0)]
    index_shards(*files, config.pixel_columns()).write(str(tmp_path / "index"))
    with pytest.raises(UserError, match="nothing was kept to train on"):
        train_diffusion(str(tmp_path / "index"), False, config, str(tmp_path / "run"), 0)
