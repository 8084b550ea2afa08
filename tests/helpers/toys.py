"""A tiny regression task and its data, for tests of the training loop; importable in spawned ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from dataprep.io.pack_format import FEATURES
from dataprep.io.storage import read_json_lines, write_json
from tests.helpers import counted_store
from train.config import TrainConfig
from train.engine import Engine
from train.loader.loader import Batch, Stream
from train.loader.sampler import SampleRandom
from train.loop import train
from train.tasks.clip import ClipTask
from train.tasks.clip_config import ClipTaskConfig
from train.tasks.prior import PriorTask
from train.tasks.prior_config import PriorStageConfig


class PairData(Stream):
    """16 noise images with 8 distinct captions."""

    def __init__(self) -> None:
        super().__init__(16, 0, 8)
        self.pixels = torch.randint(0, 256, (16, 8, 8, 3), generator=torch.Generator().manual_seed(2)).byte()

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        captions = [chr(ord("a") + row % 8) for row in rows]
        return {"key": captions, "pixels_64": self.pixels[rows], "caption": captions}


class PairNet(nn.Module):
    """Towers of one layer each, with the interface of a CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(8 * 8 * 3, 6), nn.Embedding(128, 6)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image_BCHW: Tensor, ids_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image_BD, text_BD = self.image(image_BCHW.flatten(1)), self.text(ids_BL).mean(1)
        return functional.normalize(image_BD, dim=-1), functional.normalize(text_BD, dim=-1), self.scale.exp()


class PairText:
    """A text tower whose tokens are the first letters."""

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        return torch.tensor([[ord(caption[0]), 1] for caption in captions])

    def read(self, ids_BL: Tensor) -> Tensor:
        return ids_BL

    def build(self) -> nn.Module:
        return PairNet()


class PairTask(ClipTask):
    """CLIP's loss with `PairNet`."""

    def __init__(self) -> None:
        self.config, self.columns = ClipTaskConfig(shift=1), ("pixels_64",)
        self.text = PairText()  # type: ignore[assignment]

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        save_file(weights, Path(folder) / "weights.safetensors")


class EmbeddingData(Stream):
    """16 captions of 5 tokens with CLIP embeddings of 6 numbers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(16, seed, 8)
        generator = torch.Generator().manual_seed(3)
        self.text, self.vectors = torch.randn(16, 5, 8, generator=generator), torch.randn(16, 6, generator=generator)

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        vectors = functional.normalize(self.vectors[rows], dim=1).half()
        batch: Batch = {"key": [str(row) for row in rows], "text_BLD": self.text[rows]}
        return batch | {"text_mask_BL": torch.ones(len(rows), 5, dtype=torch.bool)} | dict.fromkeys(FEATURES, vectors)


class SmallPrior(PriorTask):
    """The prior's task on `EmbeddingData`."""

    def __init__(self) -> None:
        super().__init__(PriorStageConfig(model="prior-micro", text_drop=0.3), 8, 6)

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        save_file(weights, Path(folder) / "weights.safetensors")


TIMED = ("seconds", "samples_per_second", "memory_mb", "data_ms", "forward_ms", "backward_ms", "step_ms")


class ToyData(Stream):
    """50 vectors of 8 numbers; rows in ``poison`` hold infinity."""

    def __init__(self, seed: int = 0, global_batch: int = 8, poison: tuple[int, ...] = ()) -> None:
        super().__init__(50, seed, global_batch)
        self.x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
        self.x[list(poison)] = math.inf

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        return {"key": [f"row{row}" for row in rows], "x": self.x[rows]}


class ToyTask:
    """Denoises the vectors; 569 parameters, which do not divide evenly among ranks."""

    component = "unet"

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 33), nn.SiLU(), nn.Dropout(0.0), nn.Linear(33, 8))

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        error = model(batch["x"] + random.normal("noise", 8)) - batch["x"]
        return error.square().mean(), {"size": error.abs().mean()}

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        save_file(weights, Path(folder) / "weights.safetensors")


def config(**changes: Any) -> TrainConfig:
    """Returns a config of 20 short steps; checkpoints at 6, 12, 18 and 20 interrupt log windows."""
    base = {"steps": 20, "batch_size": 8, "checkpoint_every": 6, "log_every": 4, "warmup_steps": 2, "zero_stage": 0}
    return TrainConfig(**(base | changes))


def short_config(steps: int, batch: int, rate: float) -> TrainConfig:
    """Returns the config of a short training without ZeRO."""
    return TrainConfig(
        steps=steps, batch_size=batch, learning_rate=rate, zero_stage=0, warmup_steps=5, log_every=10, ema_decay=0.9
    )


class StopError(Exception):
    """Raised in the loop to simulate a kill."""


def stop_after(step: int) -> Callable[[dict[str, Any]], None]:
    """Returns an on_event that raises at the first log row at or after ``step``."""

    def on_event(event: dict[str, Any]) -> None:
        if event["kind"] == "log" and event["row"]["step"] >= step:
            raise StopError

    return on_event


def run(folder: Path | str, stop: int | None = None, **changes: Any) -> dict[str, Any] | None:
    """Trains the toy (with ``pairs`` the contrastive one, with ``prior`` a prior); with ``stop``, kills it after it."""
    on_event = stop_after(stop) if stop else None
    try:
        if changes.pop("pairs", False):
            return train(PairTask(), config(**changes), PairData(), str(folder), 0, None, on_event)
        if changes.pop("prior", False):
            return train(SmallPrior(), config(**changes), EmbeddingData(), str(folder), 0, EmbeddingData(5), on_event)
        return train(ToyTask(), config(**changes), ToyData(), str(folder), 0, ToyData(seed=5), on_event)
    except StopError:
        return None


def rows(folder: Path | str) -> list[dict[str, Any]]:
    """Reads the log without timings."""
    return [{k: v for k, v in row.items() if k not in TIMED} for row in read_json_lines(f"{folder}/log.jsonl")]


def ema_error(settings: dict[str, Any]) -> float:
    """Returns the largest error of the engine's EMA against one of the whole fp32 weights, over 11 updates."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3))
    options = {"batch_size": 4, "ema_decay": 0.7, "learning_rate": 0.1, "weight_decay": 0.0} | settings
    engine = Engine(model, TrainConfig(**options))
    ema = engine.weights("ema")
    torch.manual_seed(engine.rank)
    for update in range(1, 12):
        engine.backward(engine(torch.randn(4, 3)).square().mean())
        assert engine.step(0.1).applied
        decay = min(0.7, (1 + update) / (10 + update))
        now = {name: slots["weight"] for name, slots in engine.full_state()}
        ema = {name: decay * ema[name] + (1 - decay) * now[name] for name in now}
    assert engine.updates() == 11
    ours = engine.weights("ema")
    assert not any(torch.equal(ours[name], now[name]) for name in now)
    return max(float((ours[name] - ema[name]).abs().max()) for name in now)


def resume_counted(folder: str, rank: int) -> None:
    """Resumes a run of two ranks on a store that counts; writes what this rank read of each file from there."""
    run(f"counted://{folder}/counted", 16)
    counted_store.reset()
    run(f"counted://{folder}/counted")
    write_json(f"{folder}/read-{rank}.json", {Path(path).name: size for path, size in counted_store.READ.items()})


def two_ranks(rank: int, port: int, folder: str, cases: list[tuple[str, list[int | None], dict[str, Any]]]) -> None:
    """Runs cases on each of two gloo ranks: folder name, stops of the attempts, config changes."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name, stops, changes in cases:
        for stop in stops:
            run(f"{folder}/{name}", stop, **changes)
    resume_counted(folder, rank)
    dist.barrier()
    errors = {stage: ema_error({"zero_stage": stage}) for stage in (0, 1, 2, 3)}
    if rank == 0:
        write_json(f"{folder}/ema_errors.json", errors)
    dist.destroy_process_group()
