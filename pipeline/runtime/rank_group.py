"""One training group: its worker processes, their places on the cluster, and one run of a function on all ranks.

Ray Train is not used, for reasons that docs/architecture.md gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dataprep.io.signals import SHUTDOWN
from pipeline.runtime.ray_session import can_grow
from pipeline.runtime.resources import list_node_resources
from pipeline.runtime.warm_processes import WARM, ProcessSpec, start_process

WAIT = 1.0  # seconds between two looks at the shutdown flag
GRACE = 5.0  # seconds for the other ranks to fail too, so that the cause can be told from its consequences


class GroupFailed(RuntimeError):  # noqa: N818, the failures are the errors
    """At least one rank failed; the group has ended.

    Args:
        failures: what each failed rank raised; RayError if its process or node died.
    """

    def __init__(self, failures: Mapping[int, BaseException]) -> None:
        super().__init__(f"ranks {sorted(failures)} failed")
        self.failures = failures


class GroupNotStarted(RuntimeError):  # noqa: N818, the group may start later
    """The processes of a group did not start in time."""


class RankGroup:
    """Worker processes that train together; rank i runs in the i-th.

    CPU ranks on a machine of our own are taken from the idle processes, and returned to them; so are those on a cluster
    of one node where enough processes are idle. Others get a placement group, so that either all of them start or none,
    and end with their training.

    Args:
        ranks: how many.
        spec: of each process.
        strategy: Ray's placement strategy.
        timeout: seconds for all processes to start.

    Raises:
        GroupNotStarted: they did not.
    """

    def __init__(self, ranks: int, spec: ProcessSpec, strategy: str, timeout: float) -> None:
        self.spec, self.placement = spec, None
        self.processes: list[Any] = []
        deadline = time.monotonic() + timeout
        try:
            if self._takes_idle(ranks, strategy):
                self.processes = [WARM.acquire(spec) for _ in range(ranks)]
            else:
                WARM.close()
                self.placement = placement_group([spec.need.to_ray()] * ranks, strategy=strategy)
                self._await_placement(deadline, timeout)
                self.processes = [start_process(spec, self._bundle(rank)) for rank in range(ranks)]
            self.locations = self._await_start(deadline, timeout)
        except BaseException:
            self.end(keep=False)
            raise
        self._order_ranks()

    def _takes_idle(self, ranks: int, strategy: str) -> bool:
        """Returns whether the ranks run in idle processes. They are all there, and where the strategy wants them."""
        if self.spec.need.gpus:
            return False
        if not can_grow():
            return True
        return strategy != "STRICT_SPREAD" and WARM.has(self.spec, ranks) and len(list_node_resources()) == 1

    def _bundle(self, rank: int) -> dict[str, Any]:
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self.placement, rank)}

    def _await_placement(self, deadline: float, timeout: float) -> None:
        assert self.placement is not None
        while not self.placement.wait(WAIT):
            self._check_time(deadline, timeout)

    def _await_start(self, deadline: float, timeout: float) -> list[tuple[str, str, list[str]]]:
        """Returns where the processes are; replaces one that ended while it was idle."""
        asked = {process.locate.remote(): rank for rank, process in enumerate(self.processes)}
        found: dict[int, tuple[str, str, list[str]]] = {}
        replaced = set[int]()
        while asked:
            ready, _ = ray.wait(list(asked), timeout=WAIT)
            for reference in ready:
                rank = asked.pop(reference)
                try:
                    found[rank] = ray.get(reference)
                except RayError:
                    if self.placement is not None or rank in replaced:
                        raise
                    replaced.add(rank)
                    self.processes[rank] = start_process(self.spec)
                    asked[self.processes[rank].locate.remote()] = rank
            if not ready:
                self._check_time(deadline, timeout)
        return [found[rank] for rank in range(len(self.processes))]

    def _check_time(self, deadline: float, timeout: float) -> None:
        if SHUTDOWN.is_set():
            raise RuntimeError("stopped by SIGTERM before the ranks had started")
        if time.monotonic() > deadline:
            need, free = self.spec.need.to_ray(), ray.available_resources()
            wanted = ", ".join(f"{amount:g} {name}" for name, amount in need.items())
            have = ", ".join(f"{free.get(name, 0):g} {name}" for name in need)
            raise GroupNotStarted(
                f"the ranks did not start within {timeout:.0f} s: each needs {wanted}, {have} are free; "
                "check `ray status`, add a node, or lower cluster.ranks, then run again to resume"
            )

    def _order_ranks(self) -> None:
        """Numbers ranks by node and GPU, so that neighbours communicate fast."""
        order = sorted(range(len(self.processes)), key=lambda i: (self.locations[i][0], self.locations[i][2], i))
        self.processes = [self.processes[i] for i in order]
        self.locations = [self.locations[i] for i in order]

    def nodes(self) -> set[str]:
        """Returns Ray's ids of the nodes that the ranks are on."""
        return {node for node, _, _ in self.locations}

    def request_shutdown(self) -> None:
        """Asks every rank to save a checkpoint and stop."""
        for process in self.processes:
            process.request_shutdown.remote()

    def run(
        self, function: Callable[..., dict[str, Any]], arguments: Mapping[str, Any], hang_seconds: float, label: str
    ) -> dict[str, Any]:
        """Calls ``function(**arguments)`` on every rank of a process group; returns rank 0's result.

        Ray's dashboard shows the calls as ``label: rank 0`` and so on.

        Raises:
            GroupFailed: a rank failed. The group must be ended then: other ranks may hang in a collective.
        """
        port = ray.get(self.processes[0].find_port.remote())
        made_from = [ray.put((function, dict(arguments)))]  # once for all ranks
        calls = {}
        for rank, (process, environment) in enumerate(zip(self.processes, self._environments(port), strict=True)):
            run_rank = process.run_rank.options(name=f"{label}: rank {rank}")
            calls[run_rank.remote(made_from, environment, self.spec.threads, hang_seconds)] = rank
        result: dict[str, Any] = {}
        failures: dict[int, BaseException] = {}
        give_up = float("inf")
        while calls and time.monotonic() < give_up:
            for reference in ray.wait(list(calls), timeout=WAIT)[0]:
                rank = calls.pop(reference)
                try:
                    result = ray.get(reference) or result
                except RayTaskError as error:
                    failures[rank] = error.cause or error
                except RayError as error:
                    failures[rank] = error
            if failures:
                give_up = min(give_up, time.monotonic() + GRACE)
        if failures:
            raise GroupFailed(failures)
        return result

    def _environments(self, port: int) -> list[dict[str, str]]:
        """Returns the variables by which torch and DeepSpeed find the group, by rank."""
        nodes = [node for node, _, _ in self.locations]
        numbers = {node: number for number, node in enumerate(dict.fromkeys(nodes))}
        visible = {node: sorted({gpu for n, _, gpus in self.locations if n == node for gpu in gpus}) for node in nodes}
        found = []
        for rank, (node, _, gpus) in enumerate(self.locations):
            local = nodes[:rank].count(node)
            env = {
                "MASTER_ADDR": self.locations[0][1],
                "MASTER_PORT": str(port),
                "RANK": str(rank),
                "WORLD_SIZE": str(len(nodes)),
                # An index into the visible GPUs: every rank of a node sees all of the group's, for direct copies.
                "LOCAL_RANK": str(visible[node].index(gpus[0]) if gpus else local),
                "LOCAL_WORLD_SIZE": str(nodes.count(node)),
                "NODE_RANK": str(numbers[node]),
                "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
            }
            found.append(env | ({"CUDA_VISIBLE_DEVICES": ",".join(visible[node])} if gpus else {}))
        return found

    def end(self, keep: bool) -> None:
        """Ends the group; with ``keep``, its processes serve the next stage where they can."""
        for process in self.processes:
            if keep and self.placement is None:
                WARM.keep(self.spec, process)
            else:
                ray.kill(process)
        if self.placement is not None:
            remove_placement_group(self.placement)
        self.processes, self.placement = [], None
