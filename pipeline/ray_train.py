"""Runs a training task in Ray Train workers: placement, process group and restarts are Ray's, the loop is ours."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer

from dataprep import storage
from dataprep.schema import UserError
from pipeline.cluster import gpus
from pipeline.progress import Update, progress

RESULT = "result.json"  # what the loop returned on rank 0; Ray keeps reported metrics only beside its own checkpoints
POLL = 1.0  # seconds between looks at the training log


def _worker(job: dict[str, Any]) -> None:
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(job["threads"])
    result = job["function"](**job["arguments"])
    if ray.train.get_context().get_world_rank() == 0:
        storage.write_json(storage.join(job["folder"], RESULT), result)


def run_training(
    function: Callable[..., dict[str, Any]],
    arguments: dict[str, Any],
    folder: str,
    workers: int,
    steps: int,
    label: str,
    retries: int,
) -> dict[str, Any]:
    """Calls ``function(**arguments)`` on ``workers`` ranks of one process group and returns rank 0's figures.

    A worker that dies makes Ray start the group again, at most ``retries`` times; ``function`` resumes from its newest
    checkpoint. Progress is read from ``folder/log.jsonl``, which rank 0 writes.
    """
    use_gpu = gpus() >= workers
    cpus = int(ray.cluster_resources().get("CPU", 1))
    threads = max(1, min(cpus // workers, 16))
    env = {"OMP_NUM_THREADS": str(threads), "NO_ALBUMENTATIONS_UPDATE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not use_gpu:
        env["DS_ACCELERATOR"] = "cpu"
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch, progress(label, steps, "steps") as update:
        watch = _Watch(folder, update)
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"function": function, "arguments": arguments, "threads": threads, "folder": folder},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": threads, **({"GPU": 1} if use_gpu else {})},
            ),
            run_config=RunConfig(
                name=label,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=retries),
                worker_runtime_env={"env_vars": env},
            ),
        )
        _quiet()
        try:
            with watch:
                trainer.fit()
        except WorkerGroupError as error:
            raise _first_failure(error) from error
    return dict(storage.read_json(storage.join(folder, RESULT)))


def _first_failure(error: WorkerGroupError) -> Exception:
    """The exception of the lowest rank that failed: the user's own mistake as it is, anything else with its rank."""
    rank, failure = min(error.worker_failures.items())
    cause = getattr(failure, "cause", None) or failure
    if isinstance(cause, UserError):
        return UserError(str(cause))
    return RuntimeError(f"rank {rank}: {type(cause).__name__}: {' '.join(str(cause).split())[-600:]}")


def _quiet() -> None:
    for name in ("ray.train", "ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("RAY_TRAIN_ENABLE_CONSOLE_LOGGING", "0")


class _Watch(threading.Thread):
    """Follows log.jsonl while the trainer blocks the driver."""

    def __init__(self, folder: str, update: Update) -> None:
        super().__init__(daemon=True)
        self.path, self.update, self.over = storage.join(folder, "log.jsonl"), update, threading.Event()

    def run(self) -> None:
        """Reads the log's last whole line every second."""
        while not self.over.wait(POLL):
            if row := last_row(self.path):
                self.update(int(row["step"]), f"loss {row['loss']:.4f}")

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


def last_row(path: str) -> dict[str, Any] | None:
    """The last whole line of a JSON-lines log; None where there is none yet."""
    rows = storage.read_json_lines(path)
    return rows[-1] if rows else None
