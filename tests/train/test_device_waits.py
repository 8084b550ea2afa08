"""An update of every task on a simulated GPU: how often the host waits for it, and that no devices are mixed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dataprep.io.pack_format import FEATURES
from tests.helpers.encoders import save_encoder
from tests.helpers.packs import make_caption
from tests.helpers.simulated_gpu import DeviceMixupError, simulated_deepspeed, simulated_gpu
from train.config import TrainConfig
from train.loader.loader import Batch, CaptionLoader, Stream
from train.loop import _TrainingRun, train
from train.models.base import Conditions
from train.task import Task
from train.tasks.bert import BertTask
from train.tasks.bert_config import BertTaskConfig
from train.tasks.clip import ClipTask
from train.tasks.clip_config import ClipTaskConfig
from train.tasks.diffusion import DiffusionTask
from train.tasks.diffusion_config import DiffusionStageConfig
from train.tasks.prior import PriorTask
from train.tasks.prior_config import PriorStageConfig
from train.tasks.t5 import T5Task, train_tokenizer
from train.tasks.t5_config import T5TaskConfig

CAPTIONS = [make_caption(index) for index in range(32)]
STEPS, STEADY = 6, 3  # updates, and those at the end of which the waits are counted


class Images(Stream):
    """Noise images of some sizes, with captions and their embeddings of 8 channels and 1 to 5 tokens."""

    def __init__(self, *columns: str) -> None:
        super().__init__(32, 0, 4)
        self.columns = columns

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        mask_BL = torch.arange(5)[None] <= torch.from_numpy(rows % 5)[:, None]
        batch: Batch = {"key": [str(row) for row in rows], "caption": [CAPTIONS[row] for row in rows]}
        batch |= {"text_BLD": torch.randn(len(rows), 5, 8), "text_mask_BL": mask_BL}
        for name in self.columns:
            side = int(name.removeprefix("pixels_"))
            batch[name] = torch.randint(0, 256, (len(rows), side, side, 3), dtype=torch.uint8)
        return batch | {name: torch.randn(len(rows), 6).half() for name in FEATURES}


def base(_: Path) -> tuple[Task, Stream]:
    task = DiffusionTask(DiffusionStageConfig(resolution=16, model="micro-base"), text_dim=8)
    return task, Images(*task.columns)


def super_resolution(_: Path) -> tuple[Task, Stream]:
    x0 = {"prediction": "x0", "lowres_max_level": 0.3}
    stage = DiffusionStageConfig(resolution=32, low_resolution=16, model="micro-sr", diffusion=x0)  # type: ignore[arg-type]
    task = DiffusionTask(stage, text_dim=8)
    return task, Images(*task.columns)


def prior(_: Path) -> tuple[Task, Stream]:
    return PriorTask(PriorStageConfig(model="prior-micro"), text_dim=8, image_dim=6), Images()


def decoder(_: Path) -> tuple[Task, Stream]:
    config = DiffusionStageConfig(resolution=16, model="micro-base", image_embedding=True)
    task = DiffusionTask(config, text_dim=8, image_dim=6)
    return task, Images(*task.columns)


def clip(folder: Path) -> tuple[Task, Stream]:
    train_tokenizer(CAPTIONS, T5TaskConfig(vocabulary=400)).save_pretrained(folder / "tokenizer")
    config = ClipTaskConfig(embed_dim=16, text_width=32, text_heads=2, context_length=16, flip=True, shift=2)
    task = ClipTask(config, str(folder / "tokenizer"))
    return task, Images(*task.columns)


def aligned_clip(folder: Path) -> tuple[Task, Stream]:
    encoder = save_encoder(folder / "encoder", "t5")
    task = ClipTask(ClipTaskConfig(embed_dim=16, image_tower="vit", text_tower="frozen"), encoder)
    return task, Images(*task.columns)


def t5(_: Path) -> tuple[Task, Stream]:
    task = T5Task(T5TaskConfig(d_model=32, d_ff=32, heads=2, layers=1, vocabulary=400), CAPTIONS)
    return task, CaptionLoader(CAPTIONS, 0, 4)


def bert(_: Path) -> tuple[Task, Stream]:
    task = BertTask(BertTaskConfig(d_model=32, d_ff=32, heads=2, layers=1, vocabulary=400), CAPTIONS)
    return task, CaptionLoader(CAPTIONS, 0, 4)


TASKS: dict[str, Callable[[Path], tuple[Task, Stream]]] = {
    "base": base,
    "super-resolution": super_resolution,
    "prior": prior,
    "decoder": decoder,
    "clip": clip,
    "aligned clip": aligned_clip,
    "t5": t5,
    "bert": bert,
}


def count_waits(
    task: Task, stream: Stream, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> list[tuple[Counter[str], Counter[str]]]:
    """Trains on a simulated GPU; returns the waits and blocking copies of each update."""
    settings: dict[str, Any] = {"steps": STEPS, "batch_size": 4, "log_every": 100, "workers": 0, "precision": "bf16"}
    config = TrainConfig(**(settings | changes))
    counted: list[tuple[Counter[str], Counter[str]]] = []
    update = _TrainingRun._update
    with simulated_deepspeed(), simulated_gpu() as gpu:

        def counting(self: _TrainingRun, *args: Any) -> None:
            gpu.forget_counts()
            update(self, *args)
            counted.append((gpu.waits.copy(), gpu.copies.copy()))

        monkeypatch.setattr(_TrainingRun, "_update", counting)
        train(task, config, stream, str(folder / "run"), 0, stream)
    return counted


@pytest.fixture(autouse=True, scope="module")
def process_group() -> None:
    """Joined before a GPU is simulated: NCCL is not."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


@pytest.mark.parametrize("zero_stage", [0, 2])
@pytest.mark.parametrize("kind", TASKS)
def test_an_update_waits_for_the_device_once_for_the_norm(
    kind: str, zero_stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, stream = TASKS[kind](tmp_path)
    counted = count_waits(task, stream, tmp_path, monkeypatch, zero_stage=zero_stage)
    assert len(counted) == STEPS
    for waits, copies in counted[-STEADY:]:
        assert [place.split()[-1] for place in waits] == ["float(self._clip_gradients())"] and waits.total() == 1
        assert not copies


@pytest.mark.parametrize("changes", [{"optimizer": "adafactor"}, {"precision": "fp32", "zero_stage": 1}], ids=str)
def test_so_does_one_with_other_settings(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, stream = base(tmp_path)
    for waits, _ in count_waits(task, stream, tmp_path, monkeypatch, **changes)[-STEADY:]:
        assert waits.total() == 1


def test_a_training_is_resumed_validated_and_sampled_without_mixing_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, stream = super_resolution(tmp_path)
    for steps in (4, STEPS):
        changes = {"steps": steps, "decay_steps": STEPS, "validate_every": 2, "sample_every": 2, "log_every": 2}
        assert len(count_waits(task, stream, tmp_path, monkeypatch, **changes)) == steps - (0 if steps == 4 else 4)
    assert len(list((tmp_path / "run/samples").iterdir())) == 3
    assert (tmp_path / "run/export/model.safetensors").exists()


def plant_text_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask of the text stays on the host."""
    conditions = DiffusionTask._conditions

    def planted(self: DiffusionTask, *args: Any) -> Any:
        found: Conditions = conditions(self, *args)
        assert found.text_mask_BL is not None
        return found._replace(text_mask_BL=torch.ones(found.text_mask_BL.shape, dtype=torch.bool))

    monkeypatch.setattr(DiffusionTask, "_conditions", planted)


def plant_noise_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frequencies of the noise level are made where tensors are made by default."""
    linspace = torch.linspace
    monkeypatch.setattr(torch, "linspace", lambda *args, device=None: linspace(*args))


def plant_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop sums its metrics on the host."""
    monkeypatch.setattr(_TrainingRun, "_scalar", lambda self, value: torch.full((1,), value, dtype=torch.float64))


@pytest.mark.parametrize("plant", [plant_text_mask, plant_noise_grid, plant_sums])
def test_a_planted_mixup_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, stream = base(tmp_path)
    plant(monkeypatch)
    with pytest.raises(DeviceMixupError, match="cuda:0 and cpu"):
        count_waits(task, stream, tmp_path, monkeypatch)


def test_a_planted_wait_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, stream = base(tmp_path)
    loss = DiffusionTask.loss

    def waiting(self: DiffusionTask, *args: Any) -> Any:
        value, metrics = loss(self, *args)
        return (value, metrics) if torch.isfinite(value) else (value * 0, metrics)

    monkeypatch.setattr(DiffusionTask, "loss", waiting)
    waits, _ = count_waits(task, stream, tmp_path, monkeypatch)[-1]
    assert waits.total() == 2 and any("torch.isfinite(value)" in place for place in waits)
