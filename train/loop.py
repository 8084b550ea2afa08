"""The one training loop: it trains whatever a task describes, and ends with the averaged weights exported.

Everything random derives from (seed, step, sample), so a run that was interrupted and resumed logs the same losses as
one that was not. Runs in one process, under torchrun, or in Ray Train workers: it joins the process group it finds.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dataprep import storage
from train import checkpoint
from train.data import Batch, SampleRandom, Stream, sample_seed, to_device
from train.engine import Engine, TrainConfig
from train.optim import learning_rate

log = logging.getLogger(__name__)
Event = dict[str, Any]


class Task(Protocol):
    """What is trained. The loop knows nothing else of it."""

    def build(self) -> nn.Module:
        """The model, with fresh weights from torch's global generator."""

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of a batch (scalar), and scalars to log beside it. ``model`` is called like the module."""

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Writes a state dict as what the next stage loads, into a local folder."""


class NonFiniteError(RuntimeError):
    """Too many updates in a row had a loss or gradient that is not finite."""


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

    Writes below ``folder`` (any fsspec URL): ``checkpoints/``, ``log.jsonl``, ``tensorboard/``, ``export/``.
    ``on_event`` is called on every rank, with ``kind`` log (row), checkpoint (path, step), resume (path, step) or
    done; a checkpoint event comes after its marker is written. Collective: every rank calls it alike.
    Returns step, loss, validation_loss, parameters, skipped, resumed_from, seconds.
    """
    torch.manual_seed(sample_seed(seed, 0, 0, "weights"))
    engine = Engine(task.build(), config)
    return _Run(task, config, engine, storage.join(folder), seed, on_event or (lambda event: None)).go(
        loader, validation
    )


class _Run:
    """State of one call of `train`."""

    def __init__(
        self, task: Task, config: TrainConfig, engine: Engine, folder: str, seed: int, on_event: Callable[[Event], None]
    ) -> None:
        self.task, self.config, self.engine, self.folder, self.seed = task, config, engine, folder, seed
        self.on_event = on_event
        self.checkpoints = storage.join(folder, "checkpoints")
        # What a checkpoint carries, so that a log window that it cuts in two comes out the same.
        self.sums: dict[str, float] = {}
        self.counted = self.skipped = self.skipped_in_row = 0
        self.last: dict[str, float] = {}

    def go(self, loader: Stream, validation: Stream | None) -> dict[str, Any]:
        """The whole run; see `train`."""
        began = time.monotonic()
        path = checkpoint.newest_on_all_ranks(self.checkpoints)
        start = self._resume(path) if path else 0
        self.journal = Journal(self.folder, start) if self.engine.rank == 0 else None
        self.engine.train()
        self.since, self.since_step = time.monotonic(), start
        with self._batches(loader, start) as batches:
            for step in range(start, self.config.steps):
                self._update(step, batches)
                self._after(step + 1, validation)
        self._export()
        if self.journal:
            self.journal.close()
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

    def _resume(self, path: str) -> int:
        step, state = checkpoint.load(self.engine, path)
        self.sums, self.counted, self.last = state["sums"], state["counted"], state["last"]
        self.skipped, self.skipped_in_row = state["skipped"], state["skipped_in_row"]
        log.info("resumed from %s", path)
        self.on_event({"kind": "resume", "rank": self.engine.rank, "path": path, "step": step})
        return step

    @contextmanager
    def _batches(self, loader: Stream, start: int) -> Iterator[Iterator[Batch]]:
        """This rank's micro-batches from update ``start`` on, prepared ahead by ``workers`` threads."""
        config, engine = self.config, self.engine
        order = [(step, micro) for step in range(start, config.steps) for micro in range(config.accumulation)]

        def one(at: tuple[int, int]) -> Batch:
            return loader.batch(at[0], engine.rank, engine.world, at[1], config.accumulation)

        if config.workers == 0:
            yield map(one, order)
            return
        with ThreadPoolExecutor(config.workers) as pool:
            try:
                yield _ahead(pool, one, order, config.workers + 1)
            finally:
                pool.shutdown(cancel_futures=True)

    def _update(self, step: int, batches: Iterator[Batch]) -> None:
        config, engine = self.config, self.engine
        rate = learning_rate(
            step, config.learning_rate, config.warmup_steps, config.steps, config.schedule, config.final_lr_share
        )
        sums: dict[str, Tensor] = {}
        suspects: list[str] = []
        for micro in range(config.accumulation):
            batch = to_device(next(batches), engine.device)
            # Dropout and the like draw from the global generator; per-sample noise from SampleRandom.
            torch.manual_seed(sample_seed(self.seed, step, micro * engine.world + engine.rank, "dropout"))
            random = SampleRandom(self.seed, step, batch["index"].tolist())
            loss, metrics = self.task.loss(engine, batch, random)
            engine.backward(loss)
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums.get(name, torch.zeros((), device=engine.device)) + value.detach().float()
            if not bool(torch.isfinite(loss)):
                suspects += batch["key"]
            update = engine.step(rate)
        self.rate, self.grad_norm = rate, update.grad_norm
        if update.applied:
            self.skipped_in_row = 0
            for name, value in sums.items():
                self.sums[name] = self.sums.get(name, 0.0) + float(value) / config.accumulation
            self.counted += 1
        else:
            self._count_skip(step, suspects)

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
        """Log, validation and checkpoint where ``step`` (updates done) calls for them."""
        config, final = self.config, step == self.config.steps
        validate = validation is not None and (final or (config.validate_every and step % config.validate_every == 0))
        if final or validate or step % config.log_every == 0:
            row = self._row(step)
            if validate and validation is not None:
                row["validation_loss"] = self._validate(validation)
            self.last |= {key: row[key] for key in ("loss", "validation_loss") if row.get(key) is not None}
            if self.journal:
                self.journal.write(row)
            self.on_event({"kind": "log", "rank": self.engine.rank, "row": row})
            self.since, self.since_step = time.monotonic(), step
        if final or step % config.checkpoint_every == 0:
            self._save(step)

    def _row(self, step: int) -> dict[str, Any]:
        names = sorted(self.sums)
        local = torch.tensor([self.sums[name] for name in names], dtype=torch.float64, device=self.engine.device)
        means = (self.engine.mean(local) / max(1, self.counted)).tolist()
        seconds = time.monotonic() - self.since
        rate = (step - self.since_step) * self.config.batch_size / max(seconds, 1e-9)
        row: dict[str, Any] = {"step": step, "loss": None} | dict(zip(names, means, strict=True))
        row |= {"lr": self.rate, "grad_norm": self.grad_norm if math.isfinite(self.grad_norm) else None}
        row |= {"skipped": self.skipped, "seconds": round(seconds, 3), "samples_per_second": round(rate, 2)}
        self.sums, self.counted = {}, 0
        return row

    @torch.no_grad()
    def _validate(self, validation: Stream) -> float:
        """Mean loss over the same batches with the same noise each time, live weights, without dropout."""
        engine = self.engine
        engine.train(False)
        total = torch.zeros((), device=engine.device)
        for index in range(self.config.validation_batches):
            batch = to_device(validation.batch(index, engine.rank, engine.world), engine.device)
            loss, _ = self.task.loss(engine, batch, SampleRandom(self.seed, -1, batch["index"].tolist()))
            total += loss.detach().float()
        engine.train()
        return float(engine.mean(total)) / self.config.validation_batches

    def _save(self, step: int) -> None:
        # The sums differ between ranks: what is stored is their mean, which is all that a log row shows.
        names = sorted(self.sums)
        local = torch.tensor([self.sums[name] for name in names], dtype=torch.float64, device=self.engine.device)
        self.sums = dict(zip(names, self.engine.mean(local).tolist(), strict=True))
        state = {"sums": self.sums, "counted": self.counted, "last": self.last}
        state |= {"skipped": self.skipped, "skipped_in_row": self.skipped_in_row}
        if self.journal:
            self.journal.flush()
        path = checkpoint.save(self.engine, self.checkpoints, step, state, self.config.keep_last)
        self.on_event({"kind": "checkpoint", "rank": self.engine.rank, "path": path, "step": step})

    def _export(self) -> None:
        weights, step = self.engine.weights("ema"), self.engine.updates()
        if self.engine.rank == 0:
            with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:
                self.task.export(scratch, weights, step)
                for name in storage.list_files(scratch):
                    storage.publish(Path(scratch) / name, storage.join(self.folder, "export", name))
        dist.barrier()


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[tuple[int, int]], Batch], order: list[tuple[int, int]], depth: int
) -> Iterator[Batch]:
    """``map(function, order)`` with ``depth`` calls under way at a time; results in order."""
    waiting: deque[Future[Batch]] = deque()
    for at in order:
        waiting.append(pool.submit(function, at))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class Journal:
    """``log.jsonl`` and TensorBoard of a run, written by rank 0; rows after the step resumed from are dropped."""

    def __init__(self, folder: str, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = storage.join(folder, "log.jsonl")
        rows = storage.read_json_lines(self.path)
        self.lines = [json.dumps(row) for row in rows if row["step"] <= start]
        self.flush()
        self.board = SummaryWriter(storage.join(folder, "tensorboard"), purge_step=start + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row: at once on a local disk; on an object store, which cannot append, with the next `flush`."""
        self.lines.append(json.dumps(row))
        if storage.is_local(self.path):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self.lines[-1] + "\n")
        for name, value in row.items():
            if name != "step" and value is not None:
                self.board.add_scalar(name, value, row["step"])

    def flush(self) -> None:
        """Brings the stored log up to date."""
        storage.write_bytes(self.path, "".join(line + "\n" for line in self.lines).encode())

    def close(self) -> None:
        """Ends the log."""
        self.flush()
        self.board.close()
