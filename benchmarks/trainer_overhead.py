"""What the training loop costs beside a bare loop: ``python -m benchmarks.trainer_overhead``.

The demo's base model at its batch size, one process, one thread, batches in memory, taking turns. Every loop takes the
same batches and draws the same noise from the same seeds (`DiffusionTask.loss`), goes backward, clips at a norm of 1,
sets the learning rate of the schedule, and makes a fused AdamW update and one of the moving average. Besides:

- ours: batches come from a thread; a check of the gradient norm and the loss; times of the parts; means for the log, of
  which a row is written to log.jsonl and TensorBoard every 20 updates; the watchdog and the notice to leave; decay for
  matrices alone (a second group of parameters), the average's warm-up;
- torch: nothing. DeepSpeed: its engine with ZeRO 2 around the same optimizer, which clips.

Like stands against like: ours with ZeRO 2 against DeepSpeed with it, ours without ZeRO against torch. The loops take
turns of a few updates each in one process, so that what else the machine does falls on all alike. Compared are
CPU-seconds an update, the first of each turn left out: the ratio of each round, then the median over the rounds.
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

from benchmarks.result import claim, write
from train.config import TrainConfig, ds_config
from train.data import Batch, SampleRandom, Stream
from train.engine import Engine, _deepspeed
from train.loop import train
from train.optim import AdamWEma, parameter_groups
from train.schedule import learning_rate
from train.tasks.diffusion import DiffusionStageConfig, DiffusionTask

BATCH, TOKENS, TEXT_DIM = 32, 12, 128
TURN, ROUNDS = 8, 9  # updates a turn, of which the first finds cold caches; turns of each loop
STEPS = TURN * ROUNDS
CONFIG = {
    "steps": STEPS,
    "batch_size": BATCH,
    "checkpoint_every": 10**6,
    "warmup_steps": 5,
    "zero_stage": 2,
    "log_every": TURN,
}


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


class Turns:
    """Lets the threads of several loops run one at a time, and notes the CPU time of their updates."""

    def __init__(self, names: Iterable[str]) -> None:
        self.gates = {name: threading.Semaphore(0) for name in names}
        self.ready = {name: threading.Event() for name in self.gates}
        self.seconds: dict[str, list[float]] = {name: [] for name in self.gates}
        self.began = 0.0

    def begin(self, name: str, update: int) -> None:
        """Loop ``name`` begins an update; at a turn's end it waits until it is called again."""
        if update:
            self.seconds[name].append(time.process_time() - self.began)
        if update % TURN == 0:
            if update:
                self.call_after(name)
            self.ready[name].set()
            self.gates[name].acquire()
        self.began = time.process_time()

    def call_after(self, name: str) -> None:
        """Calls the loop after ``name``."""
        names = list(self.gates)
        self.gates[names[(names.index(name) + 1) % len(names)]].release()

    def rounds(self, name: str) -> list[float]:
        """CPU-seconds an update in each turn but the first and the last, without the first update of each."""
        turns = [self.seconds[name][at + 1 : at + TURN] for at in range(TURN, STEPS - TURN, TURN)]
        return [statistics.mean(turn) for turn in turns]


class Timed(DiffusionTask):
    """The task, which tells of its updates."""

    def __init__(self, turns: Turns, name: str) -> None:
        super().__init__(DiffusionStageConfig(resolution=16), TEXT_DIM)
        self.turns, self.name = turns, name

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        self.turns.begin(self.name, random.step)
        return super().loss(model, batch, random)


def ours(stage: int, task: Timed) -> None:
    """The project's loop."""
    with tempfile.TemporaryDirectory() as folder:
        train(task, TrainConfig(**(CONFIG | {"zero_stage": stage})), Pictures(), folder, 0)


def bare(step: Callable[[Tensor, float], None], model: Callable[..., Any], task: Timed) -> None:
    """A plain loop over the same batches."""
    data, config = Pictures(), TrainConfig(**CONFIG)
    for number in range(STEPS):
        batch = data.batch(number)
        loss, _ = task.loss(model, batch, SampleRandom(0, number, batch["index"].tolist()))
        step(loss, learning_rate(number, config.learning_rate, 5, STEPS, "cosine"))


def plain_torch(task: Timed) -> None:
    """Nothing but torch."""
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

    bare(step, model, task)


def plain_deepspeed(task: Timed) -> None:
    """DeepSpeed's engine around the same optimizer."""
    config = TrainConfig(**CONFIG)
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

    bare(step, engine, task)


LOOPS: dict[str, Callable[[Timed], None]] = {
    "ours, ZeRO 0": partial(ours, 0),
    "torch": plain_torch,
    "ours, ZeRO 2": partial(ours, 2),
    "deepspeed": plain_deepspeed,
}


def measure() -> dict[str, list[float]]:
    """CPU-seconds an update in each round, of each loop."""
    turns = Turns(LOOPS)

    def run(name: str) -> None:
        torch.set_num_threads(1)  # each thread has its own setting
        try:
            LOOPS[name](Timed(turns, name))
        finally:
            turns.ready[name].set()
            turns.call_after(name)

    threads = {name: threading.Thread(target=run, args=(name,)) for name in LOOPS}
    for name, thread in threads.items():
        thread.start()
        turns.ready[name].wait()
    turns.gates[next(iter(LOOPS))].release()
    for thread in threads.values():
        thread.join()
    return {name: turns.rounds(name) for name in LOOPS}


def main() -> None:
    """Measures and writes the results."""
    torch.set_num_threads(1)
    Engine(nn.Linear(2, 2), TrainConfig(batch_size=1, zero_stage=2))  # imports and the process group
    seconds = measure()
    rows = [
        {"loop": name, "cpu_ms": 1000 * statistics.median(seconds[name]), "rounds": seconds[name]} for name in LOOPS
    ]
    for row in rows:
        print(f"{row['loop']:<13} {row['cpu_ms']:.2f} CPU-ms an update, median of {len(row['rounds'])} rounds")
    claims = []
    for one, other in (("ours, ZeRO 2", "deepspeed"), ("ours, ZeRO 0", "torch")):
        ratios = [mine / bare for mine, bare in zip(seconds[one], seconds[other], strict=True)]
        claims.append(claim(f"overhead of {one} over bare {other}", statistics.median(ratios) - 1, "share", 0.03, True))
    write("trainer_overhead", rows, claims, ("torch", "deepspeed"))


if __name__ == "__main__":
    main()
