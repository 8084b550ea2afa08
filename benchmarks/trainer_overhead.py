"""Overhead of the training loop over a bare loop.

    python -m benchmarks.trainer_overhead

The demo's base model at its batch size, one process, one thread, batches in memory. Every loop uses the same batches
and noise (`DiffusionTask.loss` with the same seeds), runs backward, clips at a norm of 1, sets the scheduled learning
rate, and makes a fused AdamW and an EMA update. In addition:

- ours: a prefetch thread; checks of the gradient norm and the loss; times of the parts; means for the log, a row of
  which goes to log.jsonl and TensorBoard every `TURN` updates; watchdog and SIGTERM handling; weight decay for matrices
  only (a second parameter group); EMA warm-up;
- torch: nothing. DeepSpeed: its engine with ZeRO 2 around the same optimizer; the engine clips.

Ours with ZeRO 2 is compared with DeepSpeed, ours without ZeRO with torch. The loops take turns of a few updates in one
process, so that other load on the machine affects all alike. Compared are CPU-seconds per update without the first of
each turn: the ratio in each round, then the median over the rounds.

What is counted: CPU-seconds of the process, all threads included, while the loop whose turn it is makes an update. A
prefetch thread fills its queue again in the first update of the turn after its own, so a few batches of ours are not
counted; making one copies 32 images of 16x16 from memory. Not counted: start, checkpoints, and the end of training
(validation, export), which a bare loop does not have. So this is the slope of a training run, not its start.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.result import make_claim, write_result
from train.config import TrainConfig
from train.deepspeed_config import deepspeed_config
from train.engine import Engine, _import_deepspeed
from train.loader.loader import Batch, Stream
from train.loader.sampler import SampleRandom
from train.loop import train
from train.lr_schedule import learning_rate_at
from train.optimizers import AdamWEma, parameter_groups
from train.tasks.diffusion import DiffusionTask
from train.tasks.diffusion_config import DiffusionStageConfig

BATCH, TOKENS, TEXT_DIM = 32, 12, 128
TURN, ROUNDS = 8, 9  # updates per turn, the first with cold caches; turns of each loop
STEPS = TURN * ROUNDS
CONFIG: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": BATCH,
    "checkpoint_every": 10**6,
    "warmup_steps": 5,
    "zero_stage": 2,
    "log_every": TURN,
}


class RandomImages(Stream):
    """Random images and embeddings, in memory."""

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


class Turns:
    """Runs the threads of several loops one at a time, and records the CPU time of their updates."""

    def __init__(self, names: Iterable[str]) -> None:
        self.gates = {name: threading.Semaphore(0) for name in names}
        self.ready = {name: threading.Event() for name in self.gates}
        self.seconds: dict[str, list[float]] = {name: [] for name in self.gates}
        self.began = 0.0

    def begin_update(self, name: str, update: int) -> None:
        """Called by loop ``name`` before each update; blocks at the end of a turn until the next one."""
        if update:
            self.seconds[name].append(time.process_time() - self.began)
        if update % TURN == 0:
            if update:
                self.release_next(name)
            self.ready[name].set()
            self.gates[name].acquire()
        self.began = time.process_time()

    def release_next(self, name: str) -> None:
        """Unblocks the loop after ``name``."""
        names = list(self.gates)
        self.gates[names[(names.index(name) + 1) % len(names)]].release()

    def average_rounds(self, name: str) -> list[float]:
        """Returns CPU-seconds per update of each turn except the first and last, without the turn's first update."""
        turns = [self.seconds[name][at + 1 : at + TURN] for at in range(TURN, STEPS - TURN, TURN)]
        return [statistics.mean(turn) for turn in turns]


class TimedTask(DiffusionTask):
    """The task; reports its updates to `Turns`."""

    def __init__(self, turns: Turns, name: str) -> None:
        super().__init__(DiffusionStageConfig(resolution=16), TEXT_DIM)
        self.turns, self.name = turns, name

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        self.turns.begin_update(self.name, random.step)
        return super().loss(model, batch, random)


def run_ours(stage: int, task: TimedTask) -> None:
    """Runs the project's training loop with a ZeRO stage."""
    with tempfile.TemporaryDirectory() as folder:
        train(task, TrainConfig(**(CONFIG | {"zero_stage": stage})), RandomImages(), folder, 0)


def run_bare_loop(step: Callable[[Tensor, float], None], model: Callable[..., Any], task: TimedTask) -> None:
    """Runs a plain loop over the same batches."""
    data, config = RandomImages(), TrainConfig(**CONFIG)
    for number in range(STEPS):
        batch = data.batch(number)
        loss, _ = task.loss(model, batch, SampleRandom(0, number, batch["index"].tolist()))
        step(loss, learning_rate_at(number, config.learning_rate, 5, STEPS))


def run_torch(task: TimedTask) -> None:
    """Runs a loop in plain torch."""
    model = task.build()
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.99), fused=True)
    ema = [param.detach().clone() for param in params]

    def step(loss: Tensor, rate: float) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(ema, list[Tensor](params), 1e-4)

    run_bare_loop(step, model, task)


def run_deepspeed(task: TimedTask) -> None:
    """Runs a loop around DeepSpeed's engine with the same optimizer."""
    config = TrainConfig(**CONFIG)
    model = task.build()
    optimizer = AdamWEma(parameter_groups(model, 0.01), 1e-3, 0.9999, betas=(0.9, 0.99))
    count = sum(param.numel() for param in model.parameters())
    engine, *_ = _import_deepspeed().initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(config, 1, count), dist_init_required=False
    )

    def step(loss: Tensor, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        engine.backward(loss)
        engine.step()

    run_bare_loop(step, engine, task)


LOOPS: dict[str, Callable[[TimedTask], None]] = {
    "ours, ZeRO 0": partial(run_ours, 0),
    "torch": run_torch,
    "ours, ZeRO 2": partial(run_ours, 2),
    "deepspeed": run_deepspeed,
}


def measure_loops() -> dict[str, list[float]]:
    """Returns CPU-seconds per update of each loop in each round."""
    turns = Turns(LOOPS)

    def run(name: str) -> None:
        torch.set_num_threads(1)  # each thread has its own setting
        try:
            LOOPS[name](TimedTask(turns, name))
        finally:
            turns.ready[name].set()
            turns.release_next(name)

    threads = {name: threading.Thread(target=run, args=(name,)) for name in LOOPS}
    for name, thread in threads.items():
        thread.start()
        turns.ready[name].wait()
    turns.gates[next(iter(LOOPS))].release()
    for thread in threads.values():
        thread.join()
    return {name: turns.average_rounds(name) for name in LOOPS}


def main() -> None:
    """Measures and writes the result."""
    torch.set_num_threads(1)
    Engine(nn.Linear(2, 2), TrainConfig(batch_size=1, zero_stage=2))  # imports DeepSpeed and creates the process group
    seconds = measure_loops()
    rows: list[dict[str, Any]] = [
        {"loop": name, "cpu_ms": 1000 * statistics.median(seconds[name]), "rounds": seconds[name]} for name in LOOPS
    ]
    for row in rows:
        print(f"{row['loop']:<13} {row['cpu_ms']:.2f} CPU-ms per update, median of {len(row['rounds'])} rounds")
    claims = []
    for one, other in (("ours, ZeRO 2", "deepspeed"), ("ours, ZeRO 0", "torch")):
        ratios = [mine / bare for mine, bare in zip(seconds[one], seconds[other], strict=True)]
        claims.append(
            make_claim(f"overhead of {one} over bare {other}", statistics.median(ratios) - 1, "share", 0.03, True)
        )
    write_result("trainer_overhead", rows, claims, ("torch", "deepspeed"))


if __name__ == "__main__":
    main()
