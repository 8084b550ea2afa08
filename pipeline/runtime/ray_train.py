"""Runs training on Ray Train workers: Ray places the ranks and sets up the process group; loop and restarts are ours.

Ray Train can restart a group itself, but it requests the new group's resources at once, waits forever for resources
that a dead worker has not released, and cannot measure progress by our checkpoints. Here every attempt is a new group,
started once the previous one has released its resources.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup
from rich.markup import escape

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.signals import SHUTDOWN, shutdown_on_sigterm
from pipeline.runtime.config import StageResources
from pipeline.runtime.ray_session import can_grow
from pipeline.runtime.resources import resolve_rank_need
from pipeline.runtime.shutdown import ShutdownFlag
from pipeline.store.log_tail import read_last_row
from pipeline.terminal import ProgressUpdate, console, progress
from train.preemption import Preempted
from train.watchdog import NonFiniteError, StalledLoaderError

RESULT_FILE = "result.json"  # rank 0's result; Ray keeps reported metrics only with its own checkpoints
POLL_INTERVAL = 1.0  # seconds between reads of the training log and of the shutdown flag
RELEASE_TIMEOUT = 120.0  # seconds for an ended group to release its resources
GROWTH_TIMEOUT = 1800.0  # the same where nodes may join: an autoscaler replaces a lost machine in minutes
RAY_TRAIN_ENVIRONMENT = {  # read by Ray Train in the driver; values that the user has set take precedence
    "RAY_TRAIN_ENABLE_CONSOLE_LOGGING": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # a group with a dead rank never shuts down cleanly
}


class TrainingStopped(RuntimeError):  # noqa: N818, requested, not an error
    """The driver received SIGTERM; the ranks saved a checkpoint and stopped."""


def _run_rank(job: dict[str, Any]) -> None:
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(job["threads"])
    threading.Thread(target=_listen_for_shutdown, args=(job["shutdown"],), daemon=True).start()
    result = job["function"](**job["arguments"])
    if ray.train.get_context().get_world_rank() == 0:
        storage.write_json(storage.join(job["folder"], RESULT_FILE), result)


def _listen_for_shutdown(flag: Any) -> None:
    """Sets this rank's `SHUTDOWN` when the driver shuts down or the cluster preempts this node."""
    # Ray's public get_preemption_info() is a barrier across ranks; this is the value it reads.
    from ray.train.v2._internal.execution.context import get_train_context

    preemption = get_train_context().preemption_context
    while not SHUTDOWN.wait(POLL_INTERVAL):
        if ray.get(flag.is_set.remote()) or preemption.preemption_info is not None:
            SHUTDOWN.set()


def run_training(
    function: Callable[..., dict[str, Any]],
    arguments: dict[str, Any],
    folder: str,
    workers: int,
    steps: int,
    label: str,
    retries: int,
    hang_seconds: float = 1800,
    requested: StageResources | None = None,
) -> dict[str, Any]:
    """Calls ``function(**arguments)`` on ``workers`` ranks of one process group and returns rank 0's result.

    A group that fails (a worker died, a rank hung for ``hang_seconds``, a node was lost) is restarted and resumes from
    its newest checkpoint, at most ``retries`` times without a new one in between. Progress is read from
    ``folder/log.jsonl``, which rank 0 writes. On SIGTERM to the driver the ranks save a checkpoint and stop.
    ``requested``: resources per rank and placement of the group, as configured.

    Raises:
        UserError: raised by a rank; not retried.
        TrainingStopped: the driver received SIGTERM.
        RuntimeError: no retries are left, or the failure is deterministic; lists the failures.
    """
    for name, value in RAY_TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(hang_seconds))
    os.environ.setdefault(
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(GROWTH_TIMEOUT if can_grow() else RELEASE_TIMEOUT)
    )
    failures: list[str] = []
    left, saved = retries, _list_checkpoints(folder)
    flag = ray.remote(num_cpus=0)(ShutdownFlag).remote()
    with progress(label, steps, "steps") as update, _ProgressWatch(folder, update, flag), shutdown_on_sigterm():
        while True:
            try:
                _run_group(
                    function, arguments, folder, workers, label, hang_seconds, flag, requested or StageResources()
                )
                return dict(storage.read_json(storage.join(folder, RESULT_FILE)))
            except TrainingFailedError as error:
                cause, text = _first_failure(error)
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from None
            if SHUTDOWN.is_set():
                raise TrainingStopped(text)
            failures.append(text)
            before, saved = saved, _list_checkpoints(folder)
            left = retries if saved != before else left - 1
            if left < 0 or isinstance(cause, NonFiniteError):  # would repeat
                more = f" after {len(failures)} failures: {' | '.join(failures)}" if len(failures) > 1 else f": {text}"
                raise RuntimeError(f"training gave up{more}")
            console.print(
                f"[yellow]{label}: {escape(text)}; restarting; {left} retries left without a new checkpoint[/]"
            )
            _await_release(workers)


def _run_group(
    function: Callable[..., dict[str, Any]],
    arguments: dict[str, Any],
    folder: str,
    workers: int,
    label: str,
    hang_seconds: float,
    flag: Any,
    requested: StageResources,
) -> None:
    """Runs one group of ranks to its end."""
    need = resolve_rank_need(requested, workers)
    use_gpu, threads = need.gpus > 0, max(1, int(need.cpus))
    env = {"OMP_NUM_THREADS": str(threads), "NO_ALBUMENTATIONS_UPDATE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not use_gpu:
        # Ray does not hide GPUs from workers that request none.
        env |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    job = {"function": function, "arguments": arguments, "threads": threads, "folder": folder, "shutdown": flag}
    _silence_ray_loggers()
    with _OWN_PLACEMENT_GROUPS, tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:
        trainer = TorchTrainer(
            _run_rank,
            train_loop_config=job,
            torch_config=TorchConfig(timeout_s=int(hang_seconds)),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=use_gpu,
                resources_per_worker=need.to_ray(),
                placement_strategy=requested.placement,
            ),
            run_config=RunConfig(
                name=label,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
                worker_runtime_env={"env_vars": env},
            ),
        )
        with _restored_sigint():
            trainer.fit()


class _OwnPlacementGroups:
    """Removes placement groups that a dead Ray Train controller left behind.

    Concurrent trainings cannot tell their placement groups apart; the last to end removes those of all.
    """

    def __init__(self) -> None:
        self.lock, self.running, self.before = threading.Lock(), 0, set[str]()

    def __enter__(self) -> None:
        with self.lock:
            self.before = self.before if self.running else _list_placement_groups()
            self.running += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.running -= 1
            for name in _list_placement_groups() - self.before if not self.running else ():
                remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))


_OWN_PLACEMENT_GROUPS = _OwnPlacementGroups()


def _list_placement_groups() -> set[str]:
    """Returns the ids of placement groups that hold or request resources."""
    return {name for name, entry in placement_group_table().items() if entry["state"] != "REMOVED"}


def _await_release(workers: int) -> None:
    """Waits until the cluster has a free CPU per rank; raises RuntimeError after the timeout."""
    timeout = GROWTH_TIMEOUT if can_grow() else RELEASE_TIMEOUT
    deadline = time.monotonic() + timeout
    while (free := ray.available_resources().get("CPU", 0)) < workers:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"only {free:.0f} CPUs are free {timeout:.0f} s after a group ended, {workers} ranks need one each; "
                "check `ray status`, add a node, or lower cluster.ranks, then run again to resume"
            )
        time.sleep(POLL_INTERVAL / 4)


def _list_checkpoints(folder: str) -> list[str]:
    """Returns the committed checkpoints; a new one since the last failure resets the retries."""
    path = storage.join(folder, "checkpoints")
    names = storage.list_files(path) if storage.exists(path) else []
    return [name for name in names if name.endswith("/commit.json")]


def _first_failure(error: TrainingFailedError) -> tuple[BaseException, str]:
    """Returns the root cause and a line that names its rank: a user error, else a death, else the lowest rank."""
    if not isinstance(error, WorkerGroupError):
        cause = getattr(error, "controller_failure", None) or error
        return cause, f"{type(cause).__name__}: {' '.join(str(cause).split())[-600:]}"
    failures = {rank: getattr(failure, "cause", None) or failure for rank, failure in error.worker_failures.items()}

    def priority(item: tuple[int, BaseException]) -> tuple[int, int]:
        # When one rank dies, the others fail because of it.
        kinds = (
            UserError,
            NonFiniteError,
            StalledLoaderError,
            ray.exceptions.RayError,
            Preempted,
        )
        return next((place for place, kind in enumerate(kinds) if isinstance(item[1], kind)), len(kinds)), item[0]

    rank, cause = min(failures.items(), key=priority)
    return cause, f"rank {rank}: {type(cause).__name__}: {' '.join(str(cause).split())[-600:]}"


@contextmanager
def _restored_sigint() -> Iterator[None]:
    """Restores the SIGINT handler afterwards: Ray Train's would look for a controller that is gone."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _silence_ray_loggers() -> None:
    for name in ("ray.train", "ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)


class _ProgressWatch(threading.Thread):
    """Shows progress from log.jsonl while the trainer blocks the driver, and forwards a shutdown to the ranks."""

    def __init__(self, folder: str, update: ProgressUpdate, flag: Any) -> None:
        super().__init__(daemon=True)
        self.path, self.update, self.flag = storage.join(folder, "log.jsonl"), update, flag
        self.ended = threading.Event()

    def run(self) -> None:
        """Reads the last complete row of the log every second."""
        forwarded = False
        while not self.ended.wait(POLL_INTERVAL):
            if (row := read_last_row(self.path)) and row.get("loss") is not None:
                self.update(int(row["step"]), f"loss {row['loss']:.4f}")
            if SHUTDOWN.is_set() and not forwarded:
                self.flag.set.remote()
                forwarded = True

    def __enter__(self) -> _ProgressWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()
