"""Actors for shard workers: as many as there is work and room for, more as nodes join, fewer when others need it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from rich.markup import escape

from dataprep.schema import UserError
from pipeline.cluster import grows
from pipeline.placement import Need, room_for
from pipeline.progress import console

LOOK = 2.0  # seconds between looks at what the cluster has
AHEAD = 16  # actors at most that are asked for beyond what there is: an autoscaler starts nodes for those who wait
STARTS = 10  # starts in a row that may fail
LOST = 10  # machines that may be lost under one shard before it counts as its own fault


class Pool:
    """Actors that take one call at a time.

    Args:
        make: starts an actor and returns its handle; the actor's ``node()`` gives the id of the node that it is on.
        need: what an actor takes.
        share: how many actors may be there for the sake of others, asked again and again; None: no such limit.
        most: actors at most.
        stage: for whom, in messages.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        need: Need,
        stage: str,
        share: Callable[[], int | None] = lambda: None,
        most: int | None = None,
    ) -> None:
        self.make, self.need, self.stage, self.share, self.most = make, need, stage, share, most
        self.idle: list[Any] = []
        self.busy: list[Any] = []
        self.starting: dict[Any, Any] = {}  # reference to its node's id -> actor
        self.nodes: dict[Any, str] = {}  # actor -> id of its node
        self.room, self.looked, self.failed = 0, 0.0, 0

    def _limit(self) -> int:
        """How many actors are worth asking for."""
        if time.monotonic() - self.looked > LOOK:
            before, self.room, self.looked = self.room, room_for(self.need), time.monotonic()
            if self.room == 0:
                self._nothing_fits(first=before == 0 and not self.starting)
        limit = self.room + (max(2, min(self.room, AHEAD)) if grows() else 0)
        caps = [cap for cap in (self.most, self.share()) if cap is not None]
        return max(1, min([limit, *caps]))

    def _nothing_fits(self, first: bool) -> None:
        wanted = ", ".join(f"{amount:g} {name}" for name, amount in self.need.as_ray().items())
        if not grows():
            raise UserError(
                f"cluster.stages.{self.stage}: a worker asks for {wanted}, more than this machine has; ask for less"
            )
        if first:
            console.print(f"[yellow]{self.stage}: no node has {wanted} yet; waiting for one[/]")

    def resize(self, work: int) -> None:
        """Starts or ends actors until there are as many as ``work`` pieces of work can use."""
        target = min(work, self._limit())
        have = len(self.idle) + len(self.busy) + len(self.starting)
        for _ in range(target - have):
            actor = self.make()
            self.starting[actor.node.remote()] = actor
        for _ in range(have - target):
            if self.starting:
                ray.kill(self.starting.popitem()[1])
            elif self.idle:
                ray.kill(self.idle.pop())

    def take(self) -> Any:
        """An actor that has nothing to do; there must be one."""
        self.busy.append(self.idle.pop())
        return self.busy[-1]

    def give(self, actor: Any) -> None:
        """Takes ``actor`` back after its call."""
        self.busy.remove(actor)
        self.idle.append(actor)

    def drop(self, actor: Any) -> bool:
        """Forgets an actor that died or cannot be reached; whether that was the loss of its machine."""
        self.busy.remove(actor)
        ray.kill(actor)
        return self.nodes.pop(actor, "") not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def wait(self, calls: Sequence[Any], seconds: float) -> list[Any]:
        """Waits until a call is answered or an actor is there, at most so long; returns the calls that are answered."""
        if not (calls or self.starting):
            time.sleep(min(seconds, 0.1))
            return []
        ready, _ = ray.wait([*calls, *self.starting], num_returns=1, timeout=seconds)
        if ready:  # and whatever else is
            ready, _ = ray.wait([*calls, *self.starting], num_returns=len(calls) + len(self.starting), timeout=0)
        for reference in ready:
            if actor := self.starting.pop(reference, None):
                self._arrived(reference, actor)
        return [reference for reference in ready if reference in set(calls)]

    def _arrived(self, reference: Any, actor: Any) -> None:
        try:
            self.nodes[actor] = ray.get(reference)
        except RayError as error:  # its machine was lost, or the job's package is not whole there yet
            self.failed += 1
            text = " ".join(str(error).split())[-300:]
            if self.failed > STARTS:
                raise RuntimeError(f"{self.failed} workers in a row did not start, the last one: {text}") from error
            console.print(f"[yellow]{self.stage}: a worker did not start ({escape(text)}); trying again[/]")
            ray.kill(actor)
            return
        self.failed = 0
        self.idle.append(actor)

    def close(self) -> None:
        """Ends every actor that is not at work; those at work end with their handles."""
        for actor in [*self.idle, *self.starting.values()]:
            ray.kill(actor)
        self.idle, self.starting = [], {}
