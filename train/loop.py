"""The training loop of every task: trains, validates, logs, saves checkpoints and exports the EMA weights.

All random numbers derive from (seed, step, sample), so an interrupted and resumed run logs the same losses as an
uninterrupted one. Runs in one process, under torchrun, or in Ray actors: it joins an existing process group.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.signals import shutdown_on_sigterm
from train.checkpoint import CheckpointSaver
from train.checkpoint_files import checkpoint_path
from train.config import PLACES, TrainConfig, run_identity
from train.engine import Engine
from train.errors import NonFiniteError, Preempted
from train.flops import CallRecorder, count_flops
from train.initial_weights.fitting import load_initial_weights
from train.loader.feed import DeviceFeed, to_device
from train.loader.loader import Batch, Stream
from train.loader.prefetch import prefetch_batches
from train.loader.sampler import SampleRandom, sample_seed
from train.logger import MetricLogger
from train.lr_schedule import learning_rate_at
from train.models.adapters.files import ADAPTER_FILE, save_adapter
from train.models.adapters.lora import merge_pairs, split_pairs
from train.models.adapters.registry import ADAPTERS
from train.preemption import ShutdownConsensus
from train.resume import Checkpoint, load_checkpoint, load_companions, open_newest
from train.task import (
    AccompaniedTask,
    AdaptableTask,
    Companion,
    LoadingTask,
    PartlyAdaptableTask,
    PreparingTask,
    SamplingTask,
    Task,
    ValidatingTask,
)
from train.timing import Stopwatch, peak_memory_mb, peak_tflops
from train.watchdog import SpikeDetector, Watchdog

log = logging.getLogger(__name__)
Event = dict[str, Any]
GRID_SAMPLES = 8  # images in a grid of samples
VALIDATION_STEP = -1  # step of validation's random numbers: the same noise every time


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
    ``export/``. Calls ``on_event`` on every rank with ``kind`` log (row), checkpoint (path, step; once its marker is
    written), resume (path, step) or done. On SIGTERM to any rank, or once `dataprep.io.signals.SHUTDOWN` is set
    in one, saves and raises `train.errors.Preempted`. Collective: every rank calls it with the same arguments.

    Returns step, loss, validation_loss, parameters, ranks, skipped, resumed_from, seconds.
    """
    if config.sample_every and not (isinstance(task, SamplingTask) and validation is not None):
        raise UserError(
            f"sample_every={config.sample_every}: needs a task that generates images, and validation data; set it to 0"
        )
    engine = Engine(build_model(task, config, seed), config)
    for companion in list_companions(task).values():
        companion.begin(engine.module)
    run = _TrainingRun(task, engine, storage.join(folder), seed, on_event or (lambda event: None), len(loader))
    try:
        return run.execute(loader, validation, ShutdownConsensus(engine.world, config.hang_seconds))
    finally:
        run.close()


def build_model(task: Task, config: TrainConfig, seed: int) -> nn.Module:
    """Returns the model as training begins: random from ``seed``, or with the weights that ``config.init`` names.

    With ``config.adapter`` its matrices are added to the model, or to its part, and all else there is frozen.
    """
    torch.manual_seed(sample_seed(seed, 0, 0, "weights"))
    model = task.build()
    if config.init is not None:
        fit = load_initial_weights(model, config.init)
        log.info("began from %s (%s)", config.init.source, fit.describe() or "all tensors")
    if config.adapter is not None:
        if not isinstance(task, AdaptableTask):
            raise UserError(f"adapter: {type(task).__name__} names no component for its file; leave adapter out")
        part = task.adapted_part(model) if isinstance(task, PartlyAdaptableTask) else model
        ADAPTERS[config.adapter.kind]()(part, config.adapter)
    return model


def list_companions(task: Task) -> dict[str, Companion]:
    """Returns what a task trains beside its model, by name."""
    return task.companions if isinstance(task, AccompaniedTask) else {}


class _TrainingRun:
    """State of one call of `train`."""

    def __init__(
        self,
        task: Task,
        engine: Engine,
        folder: str,
        seed: int,
        on_event: Callable[[Event], None],
        samples: int,
    ) -> None:
        self.task, self.config, self.engine, self.folder, self.seed = task, engine.config, engine, folder, seed
        self.on_event = on_event
        prepare = task.prepare if isinstance(task, PreparingTask) else None
        # A model may be compiled again for each new length. And what torch 2.13 compiles for a CPU, to train with any
        # length, asserts the length it was traced with if attention had a multiple of 8 keys then; with the null
        # token, fixed lengths never give one.
        self.feed = DeviceFeed(engine.device, seed, prepare, few_lengths=bool(self.config.compile))
        self.checkpoints = storage.join(folder, "checkpoints")
        settings = {name: value for name, value in run_identity(self.config).items() if name not in PLACES}
        self.identity = settings | {"seed": seed, "training samples": samples}
        self.companions = list_companions(task)
        self.saver = CheckpointSaver(engine, self.checkpoints, self.config, self.identity, self.companions)
        self.watchdog, self.clock = Watchdog(self.config.hang_seconds), Stopwatch(engine.device)
        self.logger: MetricLogger | None = None
        self.peak = peak_tflops(engine.device, self.config.peak_tflops)
        self.flops: int | None = None  # of an update
        # Stored in checkpoints, so that a log window interrupted by a resume logs the same values.
        self.sums: dict[str, Tensor] = {}
        self.counted = self.skipped = self.consecutive_skips = 0
        self.last: dict[str, float] = {}
        self.spikes = SpikeDetector()

    def execute(self, loader: Stream, validation: Stream | None, shutdown: ShutdownConsensus) -> dict[str, Any]:
        """Runs everything; see `train`."""
        began = time.monotonic()
        self.watchdog.feed()
        with open_newest(self.checkpoints) as found:
            start = self._resume(found) if found else 0
        if self.engine.rank == 0:
            self.logger = MetricLogger(self.folder, start, self.config)
        self.engine.train()
        self.since, self.since_step, self.start = time.monotonic(), start, start
        batches = prefetch_batches(loader, self.config, start, self.engine.rank, self.engine.world, self.feed)
        with shutdown_on_sigterm(), batches as stream:
            for step in range(start, self.config.steps):
                self.watchdog.feed()
                self._update(step, stream)
                self._finish_step(step + 1, validation)
                if shutdown.reached() and step + 1 < self.config.steps:
                    self._preempt(step + 1)
        self._collect()
        self._export()
        self.on_event({"kind": "done", "rank": self.engine.rank, "step": self.config.steps})
        return {
            "step": max(start, self.config.steps),
            "loss": self.last.get("loss"),
            "validation_loss": self.last.get("validation_loss"),
            "parameters": self.engine.parameters,
            "ranks": self.engine.world,
            "skipped": self.skipped,
            "resumed_from": start,
            "seconds": time.monotonic() - began,
        }

    def close(self) -> None:
        """Stops background threads and closes the log."""
        self.saver.close()
        if self.logger is not None:
            self.logger.close()
        self.watchdog.stop()

    def _resume(self, found: Checkpoint) -> int:
        step, state = load_checkpoint(self.engine, found, self.identity)
        load_companions(found, self.companions)
        self.sums = {name: self._scalar(value) for name, value in state["sums"].items()}
        self.counted, self.last, self.spikes = state["counted"], state["last"], SpikeDetector(state["spikes"])
        self.skipped, self.consecutive_skips = state["skipped"], state["consecutive_skips"]
        log.info("resumed from %s", found.path)
        self.on_event({"kind": "resume", "rank": self.engine.rank, "path": found.path, "step": step})
        return step

    def _scalar(self, value: float) -> Tensor:
        # Filled on the device: a copy from the host would wait for it.
        return torch.full((), value, dtype=torch.float64, device=self.engine.device)

    def _update(self, step: int, stream: Iterator[tuple[Batch, SampleRandom]]) -> None:
        config, engine, clock = self.config, self.engine, self.clock
        self.rate = learning_rate_at(
            step, config.learning_rate, config.warmup_steps, config.decay_length(), config.final_lr_share
        )
        sums: dict[str, Tensor] = {}
        seen: list[tuple[Tensor, list[str]]] = []  # loss and keys of each micro-batch
        # The first call of the model, whose operations are counted if the device's peak is known.
        recorder = CallRecorder(engine) if self.peak is not None and step == self.start else None
        for micro in range(config.accumulation):
            with clock.part("data"):
                batch, random = next(stream)
            # The global generator serves dropout; SampleRandom serves the noise of each sample.
            engine.seed(sample_seed(self.seed, step, micro * engine.world + engine.rank, "dropout"))
            with clock.part("forward"):
                loss, metrics = self.task.loss(engine if micro or recorder is None else recorder, batch, random)
            with clock.part("backward"):
                engine.backward(loss)
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums.get(name, torch.zeros((), device=engine.device)) + value.detach().float()
            seen.append((loss.detach(), batch["key"]))
            with clock.part("step"):
                update = engine.step(self.rate)
        with clock.part("step"):
            ended = [companion.end_update(update.applied) for companion in self.companions.values()]
        build = self.task.build_random if isinstance(self.task, LoadingTask) else self.task.build
        if recorder is not None and (forward := count_flops(build, recorder.calls)):
            # The backward pass counts twice the forward, once where weights are frozen; recomputation is not counted.
            self.flops = (2 if config.trains_part else 3) * forward * config.accumulation
        self.grad_norm = update.grad_norm
        if update.applied:
            self.consecutive_skips = 0
            sums = {name: value.double() / config.accumulation for name, value in sums.items()}
            for name, value in [*sums.items(), *(item for metrics in ended for item in metrics.items())]:
                self.sums[name] = self.sums.get(name, self._scalar(0)) + value.detach().double()
            self.counted += 1
        else:
            self._count_skip(step, [key for loss, keys in seen if not bool(torch.isfinite(loss)) for key in keys])

    def _count_skip(self, step: int, suspects: list[str]) -> None:
        self.skipped, self.consecutive_skips = self.skipped + 1, self.consecutive_skips + 1
        if self.consecutive_skips < self.config.max_skipped:
            return
        gathered: list[Any] = [None] * self.engine.world
        dist.all_gather_object(gathered, suspects)
        keys = sorted({key for part in gathered for key in part})
        cause = (
            f"samples of the last one: {', '.join(keys[:20])}" if keys else "its loss was finite, its gradient was not"
        )
        raise NonFiniteError(
            f"step {step}: {self.consecutive_skips} updates in a row had a non-finite loss or gradient ({cause}); "
            "lower learning_rate, or drop these samples, then run again to resume from the last checkpoint"
        )

    def _finish_step(self, step: int, validation: Stream | None) -> None:
        """Logs, validates, samples and saves when due after ``step`` updates."""
        final = step == self.config.steps
        due = {name: every and step % every == 0 for name, every in self._periods().items()}
        validate = validation is not None and (final or due["validate"])
        if final or validate or due["log"]:
            row = self._log_row(step)
            if validate and validation is not None:
                row |= self._validate(validation)
            self.last |= {key: row[key] for key in ("loss", "validation_loss") if row.get(key) is not None}
            if self.logger:
                self.logger.write(row)
            self.on_event({"kind": "log", "rank": self.engine.rank, "row": row})
            self.since, self.since_step = time.monotonic(), step
        if due["sample"] and validation is not None:
            self._save_grid(step, validation)
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

    def _log_row(self, step: int) -> dict[str, Any]:
        means = {name: value / max(1, self.counted) for name, value in self._mean_sums().items()}
        seconds = max(time.monotonic() - self.since, 1e-9)
        updates = step - self.since_step
        row: dict[str, Any] = {"step": step, "loss": None} | means
        row |= {"lr": self.rate, "grad_norm": self.grad_norm if math.isfinite(self.grad_norm) else None}
        row["skipped"] = self.skipped
        if row["loss"] is not None and (sigmas := self.spikes.check(row["loss"])):
            log.warning("step %d: loss %.4g is %.0f standard deviations above the mean", step, row["loss"], sigmas)
            row["spike"] = round(sigmas, 1)
        row |= {
            "seconds": round(seconds, 3),
            "samples_per_second": round(updates * self.config.batch_size / seconds, 2),
        }
        row |= self.clock.collect_ms(updates) | {"memory_mb": peak_memory_mb(self.engine.device)}
        if self.peak is not None and self.flops:
            row["mfu"] = round(self.flops * updates / seconds / self.peak / 1e12, 4)
        self.sums, self.counted = {}, 0
        return row

    def _mean_sums(self) -> dict[str, float]:
        """Returns the sums of the log window, averaged over the ranks."""
        names = sorted(self.sums)
        if not names:
            return {}
        means = self.engine.mean(torch.stack([self.sums[name] for name in names]))
        return dict(zip(names, means.tolist(), strict=True))

    @torch.no_grad()
    def _validate(self, validation: Stream) -> dict[str, float]:
        """Returns means over the same batches and noise each time; current weights (not EMA), no dropout."""
        engine = self.engine
        compute_loss = self.task.validate if isinstance(self.task, ValidatingTask) else self.task.loss
        engine.train(False)
        sums: dict[str, Tensor] = {}
        parts = self.config.accumulation  # as in training, or a batch might not fit in memory
        for index, micro in product(range(self.config.validation_batches), range(parts)):
            self.watchdog.feed()
            stored = validation.stored_batch(index, engine.rank, engine.world, micro, parts)
            batch, random = self.feed.receive(self.feed.send(stored, VALIDATION_STEP))
            loss, metrics = compute_loss(engine, batch, random)
            for name, value in {"loss": loss, **metrics}.items():
                pair = (
                    value.detach().double() if value.ndim else torch.stack([value.detach().double(), self._scalar(1)])
                )
                sums[name] = sums[name] + pair if name in sums else pair
        engine.train()
        means = engine.mean(torch.stack(list(sums.values())))
        return {f"validation_{name}": float(total / count) for name, (total, count) in zip(sums, means, strict=True)}

    def _save_grid(self, step: int, validation: Stream) -> None:
        weights = self.engine.weights()
        if self.logger and isinstance(self.task, SamplingTask):
            weights = self._merge(weights)
            batch = to_device(validation.first(GRID_SAMPLES), self.engine.device)
            grid = self.task.sample_grid(weights, batch, self.seed)
            self.logger.write_image("samples", grid, step)

    def _save(self, step: int) -> None:
        self._collect()
        # Sums differ between ranks; store their mean, which is all that log rows show.
        sums = self._mean_sums()
        self.sums = {name: self._scalar(value) for name, value in sums.items()}
        state = {"sums": sums, "counted": self.counted, "last": self.last, "spikes": self.spikes.state}
        state |= {"skipped": self.skipped, "consecutive_skips": self.consecutive_skips}
        if self.logger:
            self.logger.flush()
        self.saver.save(step, state)
        if self.saver.due(step):
            self._collect()

    def _collect(self) -> None:
        """Waits for an unfinished checkpoint, if any, and reports it."""
        if saved := self.saver.wait():
            self.on_event({"kind": "checkpoint", "rank": self.engine.rank, "path": saved[0], "step": saved[1]})

    def _preempt(self, step: int) -> None:
        if step % self.config.checkpoint_every:
            self._save(step)
        self._collect()
        raise Preempted(step, checkpoint_path(self.checkpoints, step))

    def _export(self) -> None:
        self.watchdog.feed()
        weights, step = self.engine.weights(), self.engine.updates()
        if self.engine.rank == 0:
            with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:
                self.task.export(scratch, self._merge(weights), step)
                self._save_adapter(Path(scratch), weights, step)
                for name in storage.list_files(scratch):
                    storage.publish(Path(scratch) / name, storage.join(self.folder, "export", name))
        dist.barrier()

    def _merge(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the state dict of the whole model: with what is frozen, and a trained adapter in the weights."""
        config, adapter = self.config, self.config.adapter
        if config.trains_part:
            weights = build_model(self.task, config, self.seed).state_dict() | weights
        if adapter is None:
            return weights
        pairs = split_pairs(weights)
        return merge_pairs(weights, pairs, dict.fromkeys(pairs, adapter.scale))

    def _save_adapter(self, folder: Path, weights: dict[str, Tensor], step: int) -> None:
        if self.config.adapter is not None and isinstance(self.task, AdaptableTask):
            component = self.task.component
            save_adapter(folder / ADAPTER_FILE, weights, self.config.adapter, component, trained_steps=step)
