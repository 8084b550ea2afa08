"""Runs a training on a group of ranks: restarts, progress, shutdown.

Every attempt is a new group. What a group lost is known by its checkpoints, and so is progress.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from rich.markup import escape

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.signals import SHUTDOWN, shutdown_on_sigterm
from pipeline.runtime.group_size import GroupPlan
from pipeline.runtime.rank_group import GroupFailed, GroupNotStarted, RankGroup
from pipeline.runtime.ray_session import can_grow
from pipeline.runtime.resources import list_draining_nodes
from pipeline.runtime.run_metrics import TrainingMetrics
from pipeline.runtime.warm_processes import ProcessSpec
from pipeline.store.log_tail import read_last_row
from pipeline.terminal import ProgressUpdate, console, progress
from train.errors import NonFiniteError, Preempted, StalledLoaderError

POLL_INTERVAL = 1.0  # seconds between reads of the training log, the shutdown flag and the draining nodes
START_TIMEOUT = 120.0  # seconds for a group to start, the release of an ended one's resources included
GROW_INTERVAL = 30.0  # seconds between two looks at whether a shrunk group can have all its ranks again
GROWTH_TIMEOUT = 1800.0  # the same where nodes may join: an autoscaler replaces a lost machine in minutes


class TrainingStopped(RuntimeError):  # noqa: N818, requested, not an error
    """The driver received SIGTERM; the ranks saved a checkpoint and stopped."""


def run_training(
    function: Callable[..., dict[str, Any]],
    arguments: dict[str, Any],
    folder: str,
    plan: GroupPlan,
    steps: int,
    label: str,
    retries: int,
    hang_seconds: float = 1800,
    regroup_seconds: float = 300,
) -> dict[str, Any]:
    """Calls ``function(**arguments)`` on the ranks of one process group and returns rank 0's result.

    The ranks import what they need: ``function`` should be defined in a module that is light to import.

    A group that fails (a worker died, a rank hung for ``hang_seconds``, a node was lost) is restarted and resumes from
    its newest checkpoint, at most ``retries`` times without a new one in between. If lost machines do not return within
    ``regroup_seconds``, it goes on with fewer ranks, and grows again when they are back. Progress is read from
    ``folder/log.jsonl``, which rank 0 writes. On SIGTERM to the driver the ranks save a checkpoint and stop.

    Raises:
        UserError: raised by a rank; not retried.
        TrainingStopped: the driver received SIGTERM.
        RuntimeError: no retries are left, or the failure is deterministic; lists the failures.
    """
    failures: list[str] = []
    left, saved = retries, _list_checkpoints(folder)
    with progress(label, steps, "steps") as update, _Watch(folder, label, update, plan) as watch, shutdown_on_sigterm():
        group = _start_group(plan, label, None)
        while True:
            try:
                return _run_group(group, function, arguments, hang_seconds, watch)
            except GroupFailed as error:
                cause, text = _first_failure(error.failures)
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from None
            if SHUTDOWN.is_set():
                raise TrainingStopped(text)
            if watch.grows and isinstance(cause, Preempted):
                console.print(f"[yellow]{label}: {plan.ranks} ranks fit again; going on with all[/]")
                group, saved = _start_group(plan, label, regroup_seconds), _list_checkpoints(folder)
                continue
            failures.append(text)
            before, saved = saved, _list_checkpoints(folder)
            left = retries if saved != before else left - 1
            if left < 0 or isinstance(cause, NonFiniteError):  # would repeat
                more = f" after {len(failures)} failures: {' | '.join(failures)}" if len(failures) > 1 else f": {text}"
                raise RuntimeError(f"training gave up{more}")
            console.print(
                f"[yellow]{label}: {escape(text)}; restarting; {left} retries left without a new checkpoint[/]"
            )
            group = _start_group(plan, label, regroup_seconds)


def _start_group(plan: GroupPlan, label: str, patience: float | None) -> RankGroup:
    """Returns a group of all ranks; with ``patience``, after so many seconds, of the most that fit."""
    spec = ProcessSpec(plan.need, max(1, int(plan.need.cpus)))
    longest = GROWTH_TIMEOUT if can_grow() else START_TIMEOUT
    size, timeout = plan.ranks, longest
    if patience is not None:
        timeout = min(patience, longest)
    while True:
        try:
            return RankGroup(size, spec, plan.placement, timeout)
        except GroupNotStarted:
            smaller = plan.find_smaller(size) if patience is not None and not SHUTDOWN.is_set() else 0
            if smaller == 0 and (patience is None or timeout == longest):
                raise
            # Nothing fits: the whole group again, and as long as at the start.
            size, timeout = (smaller, timeout) if smaller else (plan.ranks, longest)
            if smaller:
                console.print(f"[yellow]{label}: going on with {smaller} of {plan.ranks} ranks until all fit again[/]")


def _run_group(
    group: RankGroup,
    function: Callable[..., dict[str, Any]],
    arguments: dict[str, Any],
    hang_seconds: float,
    watch: _Watch,
) -> dict[str, Any]:
    """Runs one group of ranks to its end; returns rank 0's result."""
    finished = False
    watch.begin(group)
    try:
        result = group.run(function, arguments, hang_seconds, watch.label)
        finished = True
    finally:
        watch.group = None
        group.end(keep=finished)
    return result


def _list_checkpoints(folder: str) -> list[str]:
    """Returns the committed checkpoints; a new one since the last failure resets the retries."""
    path = storage.join(folder, "checkpoints")
    names = storage.list_files(path) if storage.exists(path) else []
    return [name for name in names if name.endswith("/commit.json")]


def _first_failure(failures: Mapping[int, BaseException]) -> tuple[BaseException, str]:
    """Returns the root cause and a line that names its rank: a user error, else a death, else the lowest rank."""

    def priority(item: tuple[int, BaseException]) -> tuple[int, int]:
        # When one rank dies, the others fail because of it.
        kinds = (UserError, NonFiniteError, StalledLoaderError, ray.exceptions.RayError, Preempted)
        return next((place for place, kind in enumerate(kinds) if isinstance(item[1], kind)), len(kinds)), item[0]

    rank, cause = min(failures.items(), key=priority)
    return cause, f"rank {rank}: {type(cause).__name__}: {' '.join(str(cause).split())[-600:]}"


class _Watch(threading.Thread):
    """Shows progress from log.jsonl while the group runs, and asks it to stop when the driver or a node must go."""

    def __init__(self, folder: str, label: str, update: ProgressUpdate, plan: GroupPlan) -> None:
        super().__init__(daemon=True)
        self.path, self.update, self.plan = storage.join(folder, "log.jsonl"), update, plan
        self.label, self.metrics = label, TrainingMetrics(folder, label)
        self.group: RankGroup | None = None
        self.grows = False  # the group was asked to stop because a larger one fits
        self.checked = 0.0  # when that was last looked at
        self.ended = threading.Event()

    def begin(self, group: RankGroup) -> None:
        """Watches ``group`` until `group` is None again."""
        self.grows, self.checked, self.group = False, time.monotonic(), group
        self.metrics.set_ranks(len(group.processes))

    def run(self) -> None:
        """Looks once per second."""
        while not self.ended.wait(POLL_INTERVAL):
            if (row := read_last_row(self.path)) and row.get("loss") is not None:
                self.update(int(row["step"]), f"loss {row['loss']:.4f}")
                self.metrics.set_row(row)
            group = self.group
            if group is not None:
                self.grows = self.grows or self._may_grow(group)
                if SHUTDOWN.is_set() or self.grows or _is_draining(group):
                    group.request_shutdown()  # again and again: a rank that has just started forgets earlier requests

    def _may_grow(self, group: RankGroup) -> bool:
        size = len(group.processes)
        if size == self.plan.ranks or time.monotonic() - self.checked < GROW_INTERVAL:
            return False
        self.checked = time.monotonic()
        return self.plan.has_room_to_grow(size)

    def __enter__(self) -> _Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()


def _is_draining(group: RankGroup) -> bool:
    """Returns whether the cluster is about to take one of the group's nodes away."""
    return can_grow() and not group.nodes().isdisjoint(list_draining_nodes())
