"""Runs each stage once its inputs are finished; concurrently if the cluster has room.

With `cluster.stream` a stage also starts while inputs are running that hand their shards over, on any machine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

import ray
from rich.markup import escape

from dataprep.io.signals import shutdown_on_sigterm
from pipeline.runtime.admission import ClusterShares, Reservation
from pipeline.runtime.config import ClusterConfig
from pipeline.runtime.group_size import GroupPlan, plan_group
from pipeline.runtime.ray_session import connect_ray, find_cluster_address
from pipeline.runtime.resources import WorkerNeed, get_cluster_capacity, resolve_actor_need
from pipeline.runtime.shard_stream import ShardStream, StageStreams
from pipeline.runtime.warm_processes import WARM
from pipeline.stages.base import Placement, Stage
from pipeline.stages.continued_training import find_loops
from pipeline.store.artifact import Artifact
from pipeline.terminal import console

ADMISSION_INTERVAL = 5.0  # seconds after which waiting stages are reconsidered: the cluster may have grown
# No concurrent stages up to this size, since each fills it, unless trainings have one rank and leave CPUs free.
MAX_SEQUENTIAL_CPUS = 2


class SchedulableStage(Protocol):
    """A stage, with its artifact if it is finished."""

    @property
    def stage(self) -> Stage: ...
    @property
    def artifact(self) -> Artifact | None: ...


T = TypeVar("T", bound=SchedulableStage)


class Scheduler(Generic[T]):
    """Runs the stages of a plan.

    Args:
        todo: the stages, each after its inputs; those with an artifact are not run.
        run_stage: runs one, given the finished artifacts, the cluster's shares and the streams of inputs that are still
            running; called in several threads.
    """

    def __init__(
        self,
        todo: Sequence[T],
        run_stage: Callable[[T, dict[str, Artifact], ClusterShares, StageStreams], Artifact],
        cluster: ClusterConfig,
    ) -> None:
        self.waiting = [item for item in todo if item.artifact is None]
        self.done = {item.stage.name: item.artifact for item in todo if item.artifact is not None}
        self.run_stage, self.cluster = run_stage, cluster
        self.shares = ClusterShares(get_cluster_capacity)
        self.running: set[str] = set()
        self.streams: dict[str, ShardStream] = {}  # of running stages
        self.ended: SimpleQueue[tuple[str, Artifact | BaseException]] = SimpleQueue()
        self.error: BaseException | None = None
        self.checked = False  # that all groups fit on the cluster

    def run(self) -> dict[str, Artifact]:
        """Runs all stages and returns the artifacts by stage.

        After an error no stage is started, and the error is raised once all running stages have ended: their work is
        worth keeping.
        """
        while self.waiting and self.error is None:
            self._check_groups()
            # First what no stage reads while it runs: a stage that waits for it could not stream.
            ready = sorted(self._list_ready(), key=self._can_stream)
            streams = self._can_stream(ready[0])
            side_by_side = (len(ready) > 1 or streams) and self._may_run_concurrently()
            if not (side_by_side or streams):
                self._run_inline(ready[0])
                continue
            connect_ray(self.cluster)
            self._check_groups()
            with shutdown_on_sigterm():
                self._run_concurrently(ready if side_by_side else ready[:1], side_by_side)
        if self.error is not None:
            raise self.error
        return self.done

    def _check_groups(self) -> None:
        """Raises UserError, once Ray has answered, for a training that would not get its GPUs, hours before it."""
        if self.checked or not ray.is_initialized():
            return
        self.checked = True
        for item in self.waiting:
            if item.stage.placement is Placement.GROUP:
                self._plan_group(item.stage)

    def _plan_group(self, stage: Stage) -> GroupPlan:
        requested, loop = self.cluster.stage_resources(stage.name), next(find_loops(stage.config))
        return plan_group(requested, self.cluster.ranks, loop)

    def _list_ready(self) -> list[T]:
        return [item for item in self.waiting if all(name in self.done for name in item.stage.inputs)]

    def _may_run_concurrently(self) -> bool:
        """Returns whether stages may run concurrently at all; connects to Ray if so."""
        small = (self.cluster.cpus or os.cpu_count() or 1) <= MAX_SEQUENTIAL_CPUS
        groups = [item.stage.name for item in self._list_ready() if item.stage.placement is Placement.GROUP]
        ranks = [self.cluster.stage_ranks(name) for name in groups]
        if small and 1 not in ranks and find_cluster_address(self.cluster) is None:
            return False
        connect_ray(self.cluster)
        return True

    def _run_inline(self, item: T) -> None:
        """Runs a stage in this thread, the one that receives signals."""
        if item.stage.placement is not Placement.DRIVER:
            connect_ray(self.cluster)
            self._check_groups()
        self.waiting.remove(item)
        self.done[item.stage.name] = self.run_stage(item, self.done, self.shares, StageStreams())

    def _can_stream(self, item: T) -> bool:
        """Returns whether another stage could run on what ``item`` has finished while that runs."""
        return self.cluster.stream and any(self._may_follow(other, {item.stage.name}) for other in self.waiting)

    def _may_follow(self, item: T, running: Collection[str]) -> bool:
        """Returns whether the inputs of ``item`` are finished, but for some that are running and are streamed."""
        open_inputs = [name for name in item.stage.inputs if name not in self.done]
        return bool(open_inputs) and all(name in running and name in item.stage.type.streams for name in open_inputs)

    def _run_concurrently(self, ready: Sequence[T], side_by_side: bool) -> None:
        """Starts every stage that is ready and admitted, until none runs any more.

        Unless stages may run ``side_by_side``, only those are started that stream from the given ones.
        """
        for item in ready:
            self._start(item)
        self._start_followers()
        while self.running:
            try:
                name, outcome = self.ended.get(timeout=ADMISSION_INTERVAL)
            except Empty:
                pass
            else:
                self._record_end(name, outcome)
            for item in self._list_ready() if self.error is None and side_by_side else ():
                self._start(item)
            self._start_followers()

    def _start_followers(self) -> None:
        """Starts the stages whose inputs are running and hand their shards over; a stage stands after its inputs."""
        for item in [*self.waiting] if self.error is None else ():
            if self._may_follow(item, self.streams):
                self._start(item)

    def _start(self, item: T) -> None:
        name, inputs = item.stage.name, dict(self.done)
        followed = {other: self.streams[other] for other in item.stage.inputs if other not in inputs}
        read = self.cluster.stream and any(name in other.stage.type.streams for other in self.waiting)
        streams = StageStreams(followed, ShardStream(name) if read else None)
        reservation = self._make_reservation(item.stage, streams.active)
        if not (self.shares.admits_one(reservation) if followed else self.shares.admits(reservation)):
            return
        self.shares.add(name, reservation)
        self.waiting.remove(item)
        self.running.add(name)
        if streams.output is not None:
            self.streams[name] = streams.output
        WARM.is_shared = len(self.running) > 1

        def run() -> None:
            try:
                artifact = self.run_stage(item, inputs, self.shares, streams)
                if streams.output is not None:
                    streams.output.close(artifact)
                self.ended.put((name, artifact))
            except BaseException as error:
                self.ended.put((name, error))  # before its readers end, with errors that follow from this one
                if streams.output is not None:
                    streams.output.fail()

        threading.Thread(target=run, daemon=True, name=name).start()

    def _record_end(self, name: str, outcome: Artifact | BaseException) -> None:
        self.running.remove(name)
        self.streams.pop(name, None)
        WARM.is_shared = len(self.running) > 1
        self.shares.remove(name)
        if not isinstance(outcome, BaseException):
            self.done[name] = outcome
            return
        if self.running and self.error is None:
            console.print(
                f"[red]error:[/] {escape(str(outcome))}; waiting for running stages: {', '.join(sorted(self.running))}"
            )
        self.error = self.error or outcome

    def _make_reservation(self, stage: Stage, streamed: bool) -> Reservation:
        requested = self.cluster.stage_resources(stage.name)
        if stage.placement is Placement.DRIVER:
            return Reservation(WorkerNeed(), ranks=1)
        if stage.placement is Placement.GROUP:
            plan = self._plan_group(stage)
            return Reservation(plan.need, plan.ranks)
        need = resolve_actor_need(requested, stage.placement is Placement.MODELS, streamed)
        return Reservation(need, streamed=streamed and requested.num_cpus is None)
