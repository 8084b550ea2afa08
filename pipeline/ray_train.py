"""Runs a training task in Ray Train workers: placement and process group are Ray's; loop and restarts are ours.

Ray Train can restart a group by itself, but it asks for the new group's resources at once, waits without end for what a
dead worker has not given back, and knows no checkpoint of ours to measure progress by. Here every attempt is a group of
its own, begun once the one before it has given everything back.
"""

from __future__ import annotations

import json
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

from dataprep import storage
from dataprep.schema import UserError
from pipeline.cluster import grows
from pipeline.notice import LEAVE, DriverNotice
from pipeline.placement import rank_need
from pipeline.progress import Update, console, progress
from pipeline.resources import StageResources
from train import guards

RESULT = "result.json"  # what the loop returned on rank 0; Ray keeps reported metrics only beside its own checkpoints
TAIL = 1 << 16  # bytes of the log's end that hold its last row
POLL = 1.0  # seconds between looks at the training log, and at the notice
RELEASE = 120.0  # seconds in which a group that ended must have given its resources back
JOINING = 1800.0  # seconds instead, where nodes may join: an autoscaler replaces a lost machine in minutes
SETTINGS = {  # of Ray Train, taken from the driver's environment; a user's own values stand
    "RAY_TRAIN_ENABLE_CONSOLE_LOGGING": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # a group with a dead rank does not shut down by itself
}


class TrainingStopped(RuntimeError):  # noqa: N818, a notice and no error
    """The driver was told to leave, and the workers saved before they did."""


def _worker(job: dict[str, Any]) -> None:
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(job["threads"])
    threading.Thread(target=_listen, args=(job["notice"],), daemon=True).start()
    result = job["function"](**job["arguments"])
    if ray.train.get_context().get_world_rank() == 0:
        storage.write_json(storage.join(job["folder"], RESULT), result)


def _listen(notice: Any) -> None:
    """Sets `train.guards.STOP` on the driver's notice, and on the cluster's that this node is to be taken away."""
    # Ray's public get_preemption_info() is a barrier of all ranks; this is what it asks.
    from ray.train.v2._internal.execution.context import get_train_context

    reclaimed = get_train_context().preemption_context
    while not guards.STOP.wait(POLL):
        if ray.get(notice.asked.remote()) or reclaimed.preemption_info is not None:
            guards.STOP.set()


def run_training(
    function: Callable[..., dict[str, Any]],
    arguments: dict[str, Any],
    folder: str,
    workers: int,
    steps: int,
    label: str,
    retries: int,
    hang_seconds: float = 1800,
    asked: StageResources | None = None,
) -> dict[str, Any]:
    """Calls ``function(**arguments)`` on ``workers`` ranks of one process group and returns rank 0's figures.

    A group that fails (a worker died, a rank hung for ``hang_seconds``, a node was lost) is started again and resumes
    from its newest checkpoint, at most ``retries`` times without a new one in between. Progress is read from
    ``folder/log.jsonl``, which rank 0 writes. On SIGTERM to the driver the ranks save and leave. ``asked``: what the
    user wants a rank to take, and how the ranks are placed.

    Raises:
        UserError: as a rank raised it; it is not tried again.
        TrainingStopped: the driver was asked to leave.
        RuntimeError: the retries are used up, or the failure would only repeat itself; it lists the failures.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(hang_seconds))
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(JOINING if grows() else RELEASE))
    failures: list[str] = []
    left, saved = retries, _checkpoints(folder)
    notice = ray.remote(num_cpus=0)(DriverNotice).remote()
    with progress(label, steps, "steps") as update, _Watch(folder, update, notice) as watch, _on_sigterm(watch.stop):
        while True:
            try:
                _attempt(function, arguments, folder, workers, label, hang_seconds, notice, asked or StageResources())
                return dict(storage.read_json(storage.join(folder, RESULT)))
            except TrainingFailedError as error:
                cause, text = _first_failure(error)
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from None
            if watch.stop.is_set():
                raise TrainingStopped(text)
            failures.append(text)
            before, saved = saved, _checkpoints(folder)
            left = retries if saved != before else left - 1
            if left < 0 or isinstance(cause, guards.NonFiniteError):  # the same steps would give the same numbers
                more = f" after {len(failures)} failures: {' | '.join(failures)}" if len(failures) > 1 else f": {text}"
                raise RuntimeError(f"training gave up{more}")
            console.print(
                f"[yellow]{label}: {escape(text)}; starting the group again, {left} more without a new checkpoint[/]"
            )
            _await_release(workers)


def _attempt(
    function: Callable[..., dict[str, Any]],
    arguments: dict[str, Any],
    folder: str,
    workers: int,
    label: str,
    hang_seconds: float,
    notice: Any,
    asked: StageResources,
) -> None:
    """One group of workers, from its start to its end."""
    need = rank_need(asked, workers)
    use_gpu, threads = need.gpus > 0, max(1, int(need.cpus))
    env = {"OMP_NUM_THREADS": str(threads), "NO_ALBUMENTATIONS_UPDATE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not use_gpu:
        # Ray leaves a machine's GPUs in sight of workers that asked for none.
        env |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    job = {"function": function, "arguments": arguments, "threads": threads, "folder": folder, "notice": notice}
    _quiet()
    with _OWN_PLACEMENT_GROUPS, tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:
        trainer = TorchTrainer(
            _worker,
            train_loop_config=job,
            torch_config=TorchConfig(timeout_s=int(hang_seconds)),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=use_gpu,
                resources_per_worker=need.as_ray(),
                placement_strategy=asked.placement,
            ),
            run_config=RunConfig(
                name=label,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
                worker_runtime_env={"env_vars": env},
            ),
        )
        with _own_interrupt():
            trainer.fit()


class _OwnPlacementGroups:
    """Removes the placement groups of attempts that have ended: a controller that died leaves its behind.

    Groups that train side by side cannot tell their own from the others'; the last to end tidies up for all.
    """

    def __init__(self) -> None:
        self.lock, self.running, self.before = threading.Lock(), 0, set[str]()

    def __enter__(self) -> None:
        with self.lock:
            self.before = self.before if self.running else _placement_groups()
            self.running += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.running -= 1
            for left in _placement_groups() - self.before if not self.running else ():
                remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(left)))


_OWN_PLACEMENT_GROUPS = _OwnPlacementGroups()


def _placement_groups() -> set[str]:
    """Ids of the placement groups that hold or want resources."""
    return {name for name, entry in placement_group_table().items() if entry["state"] != "REMOVED"}


def _await_release(workers: int) -> None:
    """Waits until the cluster has room for the group again; RuntimeError where it does not get any."""
    patience = JOINING if grows() else RELEASE
    deadline = time.monotonic() + patience
    while (free := ray.available_resources().get("CPU", 0)) < workers:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{free:.0f} CPUs are free {patience:.0f} s after a group ended, {workers} ranks need as many; "
                "look at `ray status`, add a node, or lower cluster.ranks, then run again to resume"
            )
        time.sleep(POLL / 4)


def _checkpoints(folder: str) -> list[str]:
    """The committed checkpoints: what a failure must have added to for the retries to count from the start."""
    path = storage.join(folder, "checkpoints")
    names = storage.list_files(path) if storage.exists(path) else []
    return [name for name in names if name.endswith("/commit.json")]


def _first_failure(error: TrainingFailedError) -> tuple[BaseException, str]:
    """What went wrong first, and a line that names the rank: a user's mistake, else a death, else the lowest rank."""
    if not isinstance(error, WorkerGroupError):
        cause = getattr(error, "controller_failure", None) or error
        return cause, f"{type(cause).__name__}: {' '.join(str(cause).split())[-600:]}"
    failures = {rank: getattr(failure, "cause", None) or failure for rank, failure in error.worker_failures.items()}

    def weight(item: tuple[int, BaseException]) -> tuple[int, int]:
        # When one rank dies, the others fail for the loss of it.
        ranks = (UserError, guards.NonFiniteError, guards.StalledLoaderError, ray.exceptions.RayError, guards.Preempted)
        return next((place for place, kind in enumerate(ranks) if isinstance(item[1], kind)), len(ranks)), item[0]

    rank, cause = min(failures.items(), key=weight)
    return cause, f"rank {rank}: {type(cause).__name__}: {' '.join(str(cause).split())[-600:]}"


@contextmanager
def _on_sigterm(event: threading.Event) -> Iterator[None]:
    """Sets ``event`` on SIGTERM while inside, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Puts the handler of Ctrl-C back afterwards: Ray Train's would look for a controller that is gone."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _quiet() -> None:
    for name in ("ray.train", "ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)


class _Watch(threading.Thread):
    """Follows log.jsonl while the trainer blocks the driver, and passes a notice on to the workers."""

    def __init__(self, folder: str, update: Update, notice: Any) -> None:
        super().__init__(daemon=True)
        self.path, self.update, self.notice = storage.join(folder, "log.jsonl"), update, notice
        self.over, self.stop = threading.Event(), threading.Event()

    def run(self) -> None:
        """Reads the log's last whole line every second."""
        told = False
        while not self.over.wait(POLL):
            if (row := last_row(self.path)) and row.get("loss") is not None:
                self.update(int(row["step"]), f"loss {row['loss']:.4f}")
            if LEAVE.is_set():
                self.stop.set()
            if self.stop.is_set() and not told:
                self.notice.tell.remote()
                told = True

    def __enter__(self) -> _Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


def last_row(path: str) -> dict[str, Any] | None:
    """The last whole line of a JSON-lines log, however long that is; None where there is none yet."""
    if not storage.exists(path):
        return None
    system, name = storage.filesystem(path)
    for line in reversed(system.cat_file(name, start=-TAIL).decode(errors="replace").splitlines()):
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):  # cut off by a kill
            continue
    return None
