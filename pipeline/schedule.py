"""Runs stages once their inputs are there: one after another, or side by side where the cluster has room."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

from rich.markup import escape

from pipeline.cluster import address_of, connect
from pipeline.config import ClusterConfig
from pipeline.notice import on_sigterm
from pipeline.placement import Need, actor_need, possible, rank_need
from pipeline.progress import console
from pipeline.room import Claim, Room
from pipeline.stages import Stage, Work
from pipeline.store import Artifact

LOOK = 5.0  # seconds between looks whether the cluster has grown enough for a stage that waits
LAPTOP = 2  # CPUs up to which nothing would be gained


class Item(Protocol):
    """A stage to run, or its artifact where it is finished."""

    @property
    def stage(self) -> Stage: ...
    @property
    def artifact(self) -> Artifact | None: ...


T = TypeVar("T", bound=Item)


class Schedule(Generic[T]):
    """The stages of a run on their way.

    Args:
        todo: the stages in an order in which each stands after its inputs; those that have an artifact are not run.
        work: runs one, given the artifacts so far and the room that it shares; called in several threads at once.
    """

    def __init__(
        self, todo: Sequence[T], work: Callable[[T, dict[str, Artifact], Room], Artifact], cluster: ClusterConfig
    ) -> None:
        self.waiting = [item for item in todo if item.artifact is None]
        self.done = {item.stage.name: item.artifact for item in todo if item.artifact is not None}
        self.work, self.cluster = work, cluster
        self.room = Room(possible)
        self.running: set[str] = set()
        self.ended: SimpleQueue[tuple[str, Artifact | BaseException]] = SimpleQueue()
        self.error: BaseException | None = None

    def run(self) -> dict[str, Artifact]:
        """Runs all of them and returns the artifacts by stage. The first error is raised once no stage runs any more:
        what others are at is worth keeping."""
        while self.waiting and self.error is None:
            ready = self._ready()
            if len(ready) == 1 or not self._shares():
                self._here(ready[0])
                continue
            with on_sigterm():
                self._beside(ready)
        if self.error is not None:
            raise self.error
        return self.done

    def _ready(self) -> list[T]:
        return [item for item in self.waiting if all(name in self.done for name in item.stage.inputs)]

    def _shares(self) -> bool:
        """Whether stages may run side by side at all; connects to Ray where they may."""
        if address_of(self.cluster) is None and (self.cluster.cpus or os.cpu_count() or 1) <= LAPTOP:
            return False
        connect(self.cluster)
        return True

    def _here(self, item: T) -> None:
        """Runs one in this thread, which signals reach."""
        self.waiting.remove(item)
        self.done[item.stage.name] = self.work(item, self.done, self.room)

    def _beside(self, ready: Sequence[T]) -> None:
        """Starts what there is room for, and waits until no stage runs that was started here or before."""
        for item in ready:
            self._start(item)
        while self.running:
            try:
                name, outcome = self.ended.get(timeout=LOOK)
            except Empty:
                pass
            else:
                self._note(name, outcome)
            for item in self._ready() if self.error is None else ():
                self._start(item)

    def _start(self, item: T) -> None:
        name, claim = item.stage.name, self._claim(item.stage)
        if not self.room.admits(claim):
            return
        self.room.enter(name, claim)
        self.waiting.remove(item)
        self.running.add(name)
        inputs = dict(self.done)

        def work() -> None:
            try:
                self.ended.put((name, self.work(item, inputs, self.room)))
            except BaseException as error:
                self.ended.put((name, error))

        threading.Thread(target=work, daemon=True, name=name).start()

    def _note(self, name: str, outcome: Artifact | BaseException) -> None:
        self.running.remove(name)
        self.room.leave(name)
        if not isinstance(outcome, BaseException):
            self.done[name] = outcome
            return
        if self.running and self.error is None:
            console.print(
                f"[red]error:[/] {escape(str(outcome))}; waiting for {', '.join(sorted(self.running))} to end"
            )
        self.error = self.error or outcome

    def _claim(self, stage: Stage) -> Claim:
        asked = self.cluster.of(stage.name)
        if stage.work is Work.DRIVER:
            return Claim(Need(), ranks=1)
        if stage.work is Work.GROUP:
            return Claim(rank_need(asked, self.cluster.ranks), self.cluster.ranks)
        return Claim(actor_need(asked, stage.work is Work.MODELS))
