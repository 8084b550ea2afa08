"""The one training loop: it trains whatever a task describes, and ends with the averaged weights exported.

Everything random derives from (seed, step, sample), so a run that was interrupted and resumed logs the same losses as
one that was not. Runs in one process, under torchrun, or in Ray Train workers: it joins the process group it finds.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dataprep import storage
from dataprep.schema import UserError
from train import checkpoint
from train.config import TrainConfig, identity
from train.data import Batch, SampleRandom, Stream, sample_seed, to_device
from train.engine import Engine
from train.guards import NonFiniteError, Preempted, Spikes, StopNotice, Watchdog
from train.journal import Journal
from train.prefetch import batches
from train.schedule import learning_rate
from train.timing import Stopwatch, peak_memory_mb, peak_tflops

log = logging.getLogger(__name__)
Event = dict[str, Any]
GRID = 8  # pictures of a grid of samples
VALIDATION_STEP = -1  # the "step" of validation's random numbers: the same noise every time


class Task(Protocol):
    """What is trained. The loop knows nothing else of it."""

    def build(self) -> nn.Module:
        """The model, with fresh weights from torch's global generator."""

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of a batch (scalar), and scalars to log beside it. ``model`` is called like the module."""

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Writes a state dict as what the next stage loads, into a local folder."""


@runtime_checkable
class Validates(Protocol):
    """A task that looks more closely on held-out data."""

    def validate(
        self, model: Callable[..., Any], batch: Batch, random: SampleRandom
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As ``loss``; a metric may also be a pair (2,) of a sum and a count, of which the quotient is logged."""


@runtime_checkable
class Draws(Protocol):
    """A task whose model makes pictures."""

    def draw(self, weights: dict[str, Tensor], batch: Batch, seed: int) -> np.ndarray:
        """A grid of samples for the conditions of a batch, uint8 RGB (H, W, 3), from a state dict."""


def train(
    task: Task,
    config: TrainConfig,
    loader: Stream,
    folder: str,
    seed: int,
    validation: Stream | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> dict[str, Any]:
    """Trains to ``config.steps``, from the newest whole checkpoint below ``folder`` if there is one.

    Writes below ``folder`` (any fsspec URL): ``checkpoints/``, ``log.jsonl``, ``tensorboard/``, ``samples/``,
    ``export/``. ``on_event`` is called on every rank, with ``kind`` log (row), checkpoint (path, step; its marker is
    written), resume (path, step) or done. On SIGTERM to any rank, or once `train.guards.STOP` is set in one, the run is
    saved and `train.guards.Preempted` raised. Collective: every rank calls it alike.
    Returns step, loss, validation_loss, parameters, skipped, resumed_from, seconds.
    """
    if config.sample_every and not (isinstance(task, Draws) and validation is not None):
        raise UserError(f"sample_every={config.sample_every}: needs a task that draws and validation data; set it to 0")
    torch.manual_seed(sample_seed(seed, 0, 0, "weights"))
    engine = Engine(task.build(), config)
    run = _Run(task, config, engine, storage.join(folder), seed, on_event or (lambda event: None), len(loader))
    try:
        return run.go(loader, validation, StopNotice(engine.world, config.hang_seconds))
    finally:
        run.close()


class _Run:
    """State of one call of `train`."""

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        engine: Engine,
        folder: str,
        seed: int,
        on_event: Callable[[Event], None],
        samples: int,
    ) -> None:
        self.task, self.config, self.engine, self.folder, self.seed = task, config, engine, folder, seed
        self.on_event = on_event
        self.checkpoints = storage.join(folder, "checkpoints")
        self.identity = identity(config) | {"seed": seed, "training samples": samples}
        self.saver = checkpoint.Saver(engine, self.checkpoints, config, self.identity)
        self.watchdog, self.clock = Watchdog(config.hang_seconds), Stopwatch(engine.device)
        self.journal: Journal | None = None
        self.peak, self.flops = peak_tflops(engine.device, config.peak_tflops), 0
        # What a checkpoint carries, so that a log window that it cuts in two comes out the same.
        self.sums: dict[str, Tensor] = {}
        self.counted = self.skipped = self.skipped_in_row = 0
        self.last: dict[str, float] = {}
        self.spikes = Spikes()

    def go(self, loader: Stream, validation: Stream | None, notice: StopNotice) -> dict[str, Any]:
        """The whole run; see `train`."""
        began = time.monotonic()
        self.watchdog.feed()
        path = checkpoint.newest_on_all_ranks(self.checkpoints)
        start = self._resume(path) if path else 0
        if self.engine.rank == 0:
            self.journal = Journal(self.folder, start, self.config)
        self.engine.train()
        self.since, self.since_step = time.monotonic(), start
        ready = batches(loader, self.config, start, self.engine.rank, self.engine.world)
        with notice.listening(), ready as stream:
            for step in range(start, self.config.steps):
                self.watchdog.feed()
                self._update(step, stream)
                self._after(step + 1, validation)
                if notice.agreed() and step + 1 < self.config.steps:
                    self._leave(step + 1)
        self._collect()
        self._export()
        self.on_event({"kind": "done", "rank": self.engine.rank, "step": self.config.steps})
        return {
            "step": max(start, self.config.steps),
            "loss": self.last.get("loss"),
            "validation_loss": self.last.get("validation_loss"),
            "parameters": self.engine.parameters,
            "skipped": self.skipped,
            "resumed_from": start,
            "seconds": time.monotonic() - began,
        }

    def close(self) -> None:
        """Ends what runs beside the loop, however it ended."""
        self.saver.close()
        if self.journal is not None:
            self.journal.close()
        self.watchdog.stop()

    def _resume(self, path: str) -> int:
        step, state = checkpoint.load(self.engine, path, self.identity)
        self.sums = {name: self._scalar(value) for name, value in state["sums"].items()}
        self.counted, self.last, self.spikes = state["counted"], state["last"], Spikes(state["spikes"])
        self.skipped, self.skipped_in_row = state["skipped"], state["skipped_in_row"]
        log.info("resumed from %s", path)
        self.on_event({"kind": "resume", "rank": self.engine.rank, "path": path, "step": step})
        return step

    def _scalar(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.engine.device)

    def _update(self, step: int, stream: Iterator[Batch]) -> None:
        config, engine, clock = self.config, self.engine, self.clock
        self.rate = learning_rate(
            step, config.learning_rate, config.warmup_steps, config.steps, config.schedule, config.final_lr_share
        )
        sums: dict[str, Tensor] = {}
        seen: list[tuple[Tensor, list[str]]] = []  # the micro-batches' losses and keys
        for micro in range(config.accumulation):
            with clock.part("data"):
                batch = to_device(next(stream), engine.device)
            # Dropout and the like draw from the global generator; per-sample noise from SampleRandom.
            engine.seed(sample_seed(self.seed, step, micro * engine.world + engine.rank, "dropout"))
            random = SampleRandom(self.seed, step, batch["index"].tolist())
            with clock.part("forward"), self._counted():
                loss, metrics = self.task.loss(engine, batch, random)
            with clock.part("backward"):
                engine.backward(loss)
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums.get(name, torch.zeros((), device=engine.device)) + value.detach().float()
            seen.append((loss.detach(), batch["key"]))
            with clock.part("step"):
                update = engine.step(self.rate)
        self.grad_norm = update.grad_norm
        if update.applied:
            self.skipped_in_row = 0
            for name, value in sums.items():
                self.sums[name] = self.sums.get(name, self._scalar(0)) + value.double() / config.accumulation
            self.counted += 1
        else:
            self._count_skip(step, [key for loss, keys in seen if not bool(torch.isfinite(loss)) for key in keys])

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Counts the operations of one forward pass, once, where a peak is known to compare with."""
        if self.peak is None or self.flops:
            yield
            return
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            yield
        # Forward once, backward twice as much; what is recomputed is not counted.
        self.flops = 3 * counter.get_total_flops() * self.config.accumulation

    def _count_skip(self, step: int, suspects: list[str]) -> None:
        self.skipped, self.skipped_in_row = self.skipped + 1, self.skipped_in_row + 1
        if self.skipped_in_row < self.config.max_skipped:
            return
        gathered: list[Any] = [None] * self.engine.world
        dist.all_gather_object(gathered, suspects)
        keys = sorted({key for part in gathered for key in part})
        blame = f"samples of the last one: {', '.join(keys[:20])}" if keys else "its loss was finite, its gradient not"
        raise NonFiniteError(
            f"step {step}: {self.skipped_in_row} updates in a row had a non-finite loss or gradient ({blame}); "
            f"lower learning_rate, or drop these samples, then run again to resume from the last checkpoint"
        )

    def _after(self, step: int, validation: Stream | None) -> None:
        """Log, validation, samples and checkpoint where ``step`` (updates done) calls for them."""
        final = step == self.config.steps
        due = {name: every and step % every == 0 for name, every in self._periods().items()}
        validate = validation is not None and (final or due["validate"])
        if final or validate or due["log"]:
            row = self._row(step)
            if validate and validation is not None:
                row |= self._validate(validation)
            self.last |= {key: row[key] for key in ("loss", "validation_loss") if row.get(key) is not None}
            if self.journal:
                self.journal.write(row)
            self.on_event({"kind": "log", "rank": self.engine.rank, "row": row})
            self.since, self.since_step = time.monotonic(), step
        if due["sample"] and validation is not None:
            self._draw(step, validation)
        if self.saver.due(step):
            self._collect()
        if final or due["checkpoint"]:
            self._save(step)

    def _periods(self) -> dict[str, int]:
        config = self.config
        return {
            "log": config.log_every,
            "validate": config.validate_every,
            "sample": config.sample_every,
            "checkpoint": config.checkpoint_every,
        }

    def _row(self, step: int) -> dict[str, Any]:
        means = {name: value / max(1, self.counted) for name, value in self._mean_sums().items()}
        seconds = max(time.monotonic() - self.since, 1e-9)
        updates = step - self.since_step
        row: dict[str, Any] = {"step": step, "loss": None} | means
        row |= {"lr": self.rate, "grad_norm": self.grad_norm if math.isfinite(self.grad_norm) else None}
        row["skipped"] = self.skipped
        if row["loss"] is not None and (sigmas := self.spikes.check(row["loss"])):
            log.warning("step %d: the loss %.4g is %.0f deviations above the usual", step, row["loss"], sigmas)
            row["spike"] = round(sigmas, 1)
        row |= {
            "seconds": round(seconds, 3),
            "samples_per_second": round(updates * self.config.batch_size / seconds, 2),
        }
        row |= self.clock.window(updates) | {"memory_mb": peak_memory_mb(self.engine.device)}
        if self.peak is not None and self.flops:
            row["mfu"] = round(self.flops * updates / seconds / self.peak / 1e12, 4)
        self.sums, self.counted = {}, 0
        return row

    def _mean_sums(self) -> dict[str, float]:
        """The sums of the window, a mean over the ranks."""
        names = sorted(self.sums)
        if not names:
            return {}
        means = self.engine.mean(torch.stack([self.sums[name] for name in names]))
        return dict(zip(names, means.tolist(), strict=True))

    @torch.no_grad()
    def _validate(self, validation: Stream) -> dict[str, float]:
        """Means over the same batches with the same noise each time, live weights, without dropout."""
        engine = self.engine
        judge = self.task.validate if isinstance(self.task, Validates) else self.task.loss
        engine.train(False)
        sums: dict[str, Tensor] = {}
        parts = self.config.accumulation  # as in training, or a batch might not fit into memory
        for index, micro in product(range(self.config.validation_batches), range(parts)):
            self.watchdog.feed()
            batch = to_device(validation.batch(index, engine.rank, engine.world, micro, parts), engine.device)
            loss, metrics = judge(engine, batch, SampleRandom(self.seed, VALIDATION_STEP, batch["index"].tolist()))
            for name, value in {"loss": loss, **metrics}.items():
                pair = (
                    value.detach().double() if value.ndim else torch.stack([value.detach().double(), self._scalar(1)])
                )
                sums[name] = sums[name] + pair if name in sums else pair
        engine.train()
        means = engine.mean(torch.stack(list(sums.values())))
        return {f"validation_{name}": float(total / count) for name, (total, count) in zip(sums, means, strict=True)}

    def _draw(self, step: int, validation: Stream) -> None:
        weights = self.engine.weights()
        if self.journal and isinstance(self.task, Draws):
            self.journal.image("samples", self.task.draw(weights, validation.first(GRID), self.seed), step)

    def _save(self, step: int) -> None:
        self._collect()
        # The sums differ between ranks: what is stored is their mean, which is all that a log row shows.
        sums = self._mean_sums()
        self.sums = {name: self._scalar(value) for name, value in sums.items()}
        state = {"sums": sums, "counted": self.counted, "last": self.last, "spikes": self.spikes.state}
        state |= {"skipped": self.skipped, "skipped_in_row": self.skipped_in_row}
        if self.journal:
            self.journal.flush()
        self.saver.save(step, state)
        if self.saver.due(step):
            self._collect()

    def _collect(self) -> None:
        """Waits for the checkpoint under way, if there is one, and tells of it."""
        if saved := self.saver.wait():
            self.on_event({"kind": "checkpoint", "rank": self.engine.rank, "path": saved[0], "step": saved[1]})

    def _leave(self, step: int) -> None:
        if step % self.config.checkpoint_every:
            self._save(step)
        self._collect()
        raise Preempted(step, checkpoint.checkpoint_path(self.checkpoints, step))

    def _export(self) -> None:
        self.watchdog.feed()
        weights, step = self.engine.weights(), self.engine.updates()
        if self.engine.rank == 0:
            with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:
                self.task.export(scratch, weights, step)
                for name in storage.list_files(scratch):
                    storage.publish(Path(scratch) / name, storage.join(self.folder, "export", name))
        dist.barrier()
