"""What the training loop costs beside a bare loop: ``python -m benchmarks.trainer_overhead``.

The demo's base model at its batch size, one process, one thread, batches in memory, taking turns. Every loop takes the
same batches and draws the same noise from the same seeds (`DiffusionTask.loss`), goes backward, clips at a norm of 1,
sets the learning rate of the schedule, and makes a fused AdamW update and one of the moving average. Besides:

- ours: batches come from a thread; a check of the gradient norm and the loss; times of the parts; means for the log, of
  which a row is written to log.jsonl and TensorBoard every 20 updates; the watchdog and the notice to leave; decay for
  matrices alone (a second group of parameters), the average's warm-up;
- torch: nothing. DeepSpeed: its engine with ZeRO 2 around the same optimizer, which clips.

Like stands against like: ours with ZeRO 2 against DeepSpeed with it, ours without ZeRO against torch. What is compared
are CPU-seconds an update: of each turn the ratio, then the median over the turns.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.result import claim, write
from train.config import TrainConfig, ds_config
from train.data import Batch, SampleRandom, Stream
from train.engine import Engine, _deepspeed
from train.loop import train
from train.optim import AdamWEma, parameter_groups
from train.schedule import learning_rate
from train.tasks.diffusion import DiffusionStageConfig, DiffusionTask

BATCH, TOKENS, TEXT_DIM, WARM, STEPS, TURNS = 32, 12, 128, 4, 45, 6
CONFIG = {"steps": STEPS, "batch_size": BATCH, "checkpoint_every": 10**6, "warmup_steps": 5, "zero_stage": 2}


class Pictures(Stream):
    """Random pictures and embeddings in memory."""

    def __init__(self) -> None:
        super().__init__(512, 0, BATCH)
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (512, 16, 16, 3), generator=generator, dtype=torch.uint8)
        self.text = torch.randn(512, TOKENS, TEXT_DIM, generator=generator)

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        index = torch.from_numpy(rows)
        batch: Batch = {
            "key": [str(row) for row in rows],
            "pixels_16": self.pixels[index],
            "text_BLD": self.text[index],
        }
        return batch | {"text_mask_BL": torch.ones(len(rows), TOKENS, dtype=torch.bool)}


class Timed(DiffusionTask):
    """The task, which notes the CPU time at two of its steps."""

    def __init__(self) -> None:
        super().__init__(DiffusionStageConfig(resolution=16), TEXT_DIM)
        self.times: dict[int, float] = {}

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        if random.step in (WARM, STEPS - 1):
            self.times[random.step] = time.process_time()
        return super().loss(model, batch, random)

    def seconds(self) -> float:
        """CPU-seconds an update between the two."""
        return (self.times[STEPS - 1] - self.times[WARM]) / (STEPS - 1 - WARM)


def ours(stage: int) -> float:
    """The project's loop."""
    task = Timed()
    with tempfile.TemporaryDirectory() as folder:
        train(task, TrainConfig(**(CONFIG | {"zero_stage": stage})), Pictures(), folder, 0)
    return task.seconds()


def bare(step: Callable[[Tensor, float], None], model: Callable[..., Any], task: Timed) -> float:
    """A plain loop over the same batches."""
    data, config = Pictures(), TrainConfig(**CONFIG)
    for number in range(STEPS):
        batch = data.batch(number)
        loss, _ = task.loss(model, batch, SampleRandom(0, number, batch["index"].tolist()))
        step(loss, learning_rate(number, config.learning_rate, 5, STEPS, "cosine"))
    return task.seconds()


def plain_torch() -> float:
    """Nothing but torch."""
    task = Timed()
    model = task.build()
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.99), fused=True)
    average = [param.detach().clone() for param in params]

    def step(loss: Tensor, rate: float) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1e-4)

    return bare(step, model, task)


def plain_deepspeed() -> float:
    """DeepSpeed's engine around the same optimizer."""
    task, config = Timed(), TrainConfig(**CONFIG)
    model = task.build()
    optimizer = AdamWEma(parameter_groups(model, 0.01), 1e-3, 0.9999, betas=(0.9, 0.99))
    count = sum(param.numel() for param in model.parameters())
    engine, *_ = _deepspeed().initialize(
        model=model, optimizer=optimizer, config=ds_config(config, 1, count), dist_init_required=False
    )

    def step(loss: Tensor, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        engine.backward(loss)
        engine.step()

    return bare(step, engine, task)


def main() -> None:
    """Measures and writes the results."""
    torch.set_num_threads(1)
    Engine(nn.Linear(2, 2), TrainConfig(batch_size=1, zero_stage=2))  # imports and the process group
    loops: dict[str, Callable[[], float]] = {
        "ours, ZeRO 0": lambda: ours(0),
        "torch": plain_torch,
        "ours, ZeRO 2": lambda: ours(2),
        "deepspeed": plain_deepspeed,
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(TURNS):
        for name, loop in itertools.islice(itertools.cycle(loops.items()), turn, turn + len(loops)):
            torch.manual_seed(0)
            gc.collect()
            seconds[name].append(loop())
            print(f"turn {turn}: {name:<13} {1000 * seconds[name][-1]:.2f} CPU-ms an update", flush=True)
    rows = [{"loop": name, "cpu_ms": 1000 * statistics.median(seconds[name]), "turns": seconds[name]} for name in loops]
    claims = []
    for one, other in (("ours, ZeRO 2", "deepspeed"), ("ours, ZeRO 0", "torch")):
        ratios = [mine / bare for mine, bare in zip(seconds[one], seconds[other], strict=True)]
        claims.append(claim(f"overhead of {one} over bare {other}", statistics.median(ratios) - 1, "share", 0.03, True))
    write("trainer_overhead", rows, claims, ("torch", "deepspeed"))


if __name__ == "__main__":
    main()
