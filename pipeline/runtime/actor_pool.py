"""An elastic pool of worker processes: sized by the work left, the cluster's capacity and the stage's share of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from rich.markup import escape

from dataprep.io.errors import UserError
from pipeline.runtime.ray_session import can_grow
from pipeline.runtime.resources import count_fitting_workers
from pipeline.runtime.warm_processes import WARM, ProcessSpec
from pipeline.terminal import console

CAPACITY_INTERVAL = 2.0  # seconds between two reads of the cluster's capacity
MAX_SURPLUS_ACTORS = 16  # requested beyond the current capacity: pending actors make an autoscaler add nodes
MAX_FAILED_STARTS = 10  # in a row


class ActorPool:
    """A pool of actors (`pipeline.runtime.worker_process.WorkerProcess`) that each run one call at a time.

    Args:
        spec: of one actor.
        stage: the stage's name, for messages.
        get_share: returns the maximum number of actors in fairness to other stages, or None; called repeatedly.
        max_actors: maximum number of actors.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        stage: str,
        get_share: Callable[[], int | None] = lambda: None,
        max_actors: int | None = None,
    ) -> None:
        self.spec, self.need, self.stage = spec, spec.need, stage
        self.get_share, self.max_actors = get_share, max_actors
        self.idle: list[Any] = []
        self.busy: list[Any] = []
        self.starting: dict[Any, Any] = {}  # reference to its location -> actor
        self.nodes: dict[Any, str] = {}  # actor -> node id
        self.capacity, self.checked, self.failed_starts = 0, 0.0, 0

    def _actor_limit(self) -> int:
        """Returns how many actors are worth requesting."""
        if time.monotonic() - self.checked > CAPACITY_INTERVAL:
            before = self.capacity
            self.capacity, self.checked = count_fitting_workers(self.need), time.monotonic()
            if self.capacity == 0:
                self._report_no_capacity(first=before == 0 and not self.starting)
        limit = self.capacity + (max(2, min(self.capacity, MAX_SURPLUS_ACTORS)) if can_grow() else 0)
        caps = [cap for cap in (self.max_actors, self.get_share()) if cap is not None]
        return max(1, min([limit, *caps]))

    def _report_no_capacity(self, first: bool) -> None:
        """Prints that no node fits an actor; raises UserError where no node can join."""
        needed = ", ".join(f"{amount:g} {name}" for name, amount in self.need.to_ray().items())
        if not can_grow():
            raise UserError(
                f"cluster.stages.{self.stage}: a worker requests {needed}, more than this machine has; lower it"
            )
        if first:
            console.print(f"[yellow]{self.stage}: no node with {needed} yet; waiting for one[/]")

    def resize(self, work: int, more_to_come: bool = False) -> None:
        """Starts actors until there are as many as ``work`` shards can use; ends those that others may want.

        While there is ``more_to_come``, idle actors are only ended above the pool's limit: starting them anew would
        cost more than they hold.
        """
        limit = self._actor_limit()
        target = min(work, limit)
        have = len(self.idle) + len(self.busy) + len(self.starting)
        for _ in range(target - have):
            actor = WARM.acquire(self.spec)
            self.starting[actor.locate.remote()] = actor
        for _ in range(have - (target if can_grow() and not more_to_come else limit)):
            if self.starting:
                ray.kill(self.starting.popitem()[1])
            elif self.idle:
                self._end(self.idle.pop())

    def acquire(self) -> Any:
        """Returns an idle actor and marks it busy; there must be one."""
        self.busy.append(self.idle.pop())
        return self.busy[-1]

    def release(self, actor: Any) -> None:
        """Marks ``actor`` idle after its call."""
        self.busy.remove(actor)
        self.idle.append(actor)

    def discard(self, actor: Any) -> bool:
        """Removes a dead or unreachable actor; returns whether its node was lost."""
        self.busy.remove(actor)
        ray.kill(actor)
        return self.nodes.pop(actor, "") not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def wait(self, calls: Sequence[Any], seconds: float) -> list[Any]:
        """Waits up to ``seconds`` for a call to finish or an actor to start; returns the finished calls."""
        if not (calls or self.starting):
            time.sleep(min(seconds, 0.1))
            return []
        ready, _ = ray.wait([*calls, *self.starting], num_returns=1, timeout=seconds)
        if ready:  # collect everything else that is ready
            ready, _ = ray.wait([*calls, *self.starting], num_returns=len(calls) + len(self.starting), timeout=0)
        for reference in ready:
            if actor := self.starting.pop(reference, None):
                self._add_started(reference, actor)
        return [reference for reference in ready if reference in set(calls)]

    def _add_started(self, reference: Any, actor: Any) -> None:
        try:
            self.nodes[actor] = ray.get(reference)[0]
        except RayError as error:  # its node was lost, or the job's package is not fully extracted there yet
            self.failed_starts += 1
            text = " ".join(str(error).split())[-300:]
            if self.failed_starts > MAX_FAILED_STARTS:
                raise RuntimeError(f"{self.failed_starts} workers in a row failed to start, last: {text}") from error
            console.print(f"[yellow]{self.stage}: a worker failed to start ({escape(text)}); retrying[/]")
            ray.kill(actor)
            return
        self.failed_starts = 0
        self.idle.append(actor)

    def _end(self, actor: Any, keep: bool = True) -> None:
        """Ends an idle actor, or keeps it for the next stage; not while concurrent stages want its resources."""
        if keep and self.get_share() is None:
            WARM.keep(self.spec, actor)
        else:
            ray.kill(actor)

    def close(self, keep: bool = True) -> None:
        """Ends every idle or starting actor; busy ones end with their handles.

        One that has not said yet where it is may be one of the stage before, busy forgetting that. It is kept too,
        where no node would be started for it.
        """
        for actor in self.idle:
            self._end(actor, keep)
        for actor in self.starting.values():
            self._end(actor, keep and not can_grow())
        self.idle, self.starting = [], {}
