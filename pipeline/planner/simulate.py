"""Seeded event simulation of the stage graph on N machines that fail; takes seconds at any size.

Each machine fails as a Poisson process and is replaced after a time. A data stage is a queue of equal shards: each
machine works on as many at once as it has slots; a failure loses those in progress, and any free machine redoes them.
Events are of machines, not of shards or URLs: while much is left, all machines advance together to a common time
(arrays); the last shards are then assigned one machine at a time. A training group stops if any of its machines fails,
and restarts from its last checkpoint once the machine is replaced.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

HOPELESS = 1e-4  # probability of a checkpoint interval without failure below which training never ends
BULK = 4  # rounds of shards that are assigned one machine at a time


@dataclass(frozen=True)
class FailureRates:
    """How machines fail. Times in seconds."""

    rate: float  # failures of a machine a second
    repair: float  # until a lost machine is replaced
    restart: float = 0.0  # until a training group runs again after that


@dataclass(frozen=True)
class WorkQueue:
    """A data stage: ``shards`` equal pieces of ``seconds`` each, ``slots`` at a time on each of ``nodes`` machines."""

    shards: int
    seconds: float
    nodes: int
    slots: int = 1


@dataclass(frozen=True)
class Training:
    """A group of ``nodes`` machines with ``seconds`` of work; saving a checkpoint every ``interval`` takes ``save``."""

    seconds: float
    nodes: int
    interval: float
    save: float = 0.0


@dataclass(frozen=True)
class SimulationResult:
    """Start and end of a stage in seconds, its failures, and the machine-seconds lost to them."""

    start: float
    end: float
    failures: int
    lost: float


class NeverEndsError(ValueError):
    """Failures come faster than checkpoints."""


def simulate_stages(
    stages: Mapping[str, WorkQueue | Training],
    inputs: Mapping[str, Collection[str]],
    faults: Mapping[str, FailureRates],
    seed: int,
) -> dict[str, SimulationResult]:
    """Simulates the stages in order, each from the end of its ``inputs``; ``faults`` by stage.

    Stages that do not depend on each other run concurrently, on machines of their own.
    """
    random = np.random.default_rng(seed)
    done: dict[str, SimulationResult] = {}
    for name, stage in stages.items():
        start = max((done[before].end for before in inputs.get(name, ()) if before in done), default=0.0)
        if isinstance(stage, WorkQueue):
            outcome = simulate_queue(stage, faults[name], random)
        else:
            outcome = simulate_training(stage, faults[name], random)
        done[name] = SimulationResult(start, start + outcome.end, outcome.failures, outcome.lost)
    return done


def simulate_queue(queue: WorkQueue, faults: FailureRates, random: np.random.Generator) -> SimulationResult:
    """Simulates a data stage from time 0."""
    fleet = _Fleet(queue, faults, random)
    left = queue.shards
    round_size = queue.nodes * queue.slots
    while left > BULK * round_size:
        # Half of what is left, at least one round: keeps machines close in time however often each fails.
        rounds = max(1, (left // round_size - BULK) // 2)
        left -= fleet.advance(float(fleet.free.min()) + rounds * queue.seconds)
    end = fleet.finish(left)
    return SimulationResult(0.0, end, fleet.failures, fleet.lost)


class _Fleet:
    """Machines that work on a queue: when each is free next, and when each fails next."""

    def __init__(self, queue: WorkQueue, faults: FailureRates, random: np.random.Generator) -> None:
        self.queue, self.faults, self.random = queue, faults, random
        self.free = np.zeros(queue.nodes)
        self.fails = self._lifetimes(queue.nodes)
        self.failures, self.lost = 0, 0.0

    def _lifetimes(self, count: int) -> np.ndarray:
        if self.faults.rate == 0:
            return np.full(count, np.inf)
        return self.random.exponential(1 / self.faults.rate, count)

    def advance(self, until: float) -> int:
        """Lets every machine start shards until that time; returns the shards finished."""
        queue, done = self.queue, 0
        while (behind := np.flatnonzero(self.free < until)).size:
            rounds = np.ceil((until - self.free[behind]) / queue.seconds)
            survives = np.floor((self.fails[behind] - self.free[behind]) / queue.seconds)
            whole = np.maximum(0, np.minimum(rounds, survives))
            done += int(whole.sum()) * queue.slots
            self.free[behind] += whole * queue.seconds
            self._fail(behind[survives < rounds])
        return done

    def _fail(self, broken: np.ndarray) -> None:
        """Fails these machines: their shards in progress are lost, and they return after the repair."""
        at = self.fails[broken]
        self.lost += float(np.maximum(0.0, at - self.free[broken]).sum()) + broken.size * self.faults.repair
        self.failures += int(broken.size)
        self.free[broken] = np.maximum(at, self.free[broken]) + self.faults.repair
        self.fails[broken] = self.free[broken] + self._lifetimes(broken.size)

    def finish(self, left: int) -> float:
        """Assigns the last shards to free machines; returns the time when all are done."""
        queue, end = self.queue, 0.0
        waiting = [(float(time), node) for node, time in enumerate(self.free)]  # free machines
        running: list[tuple[float, int, int, bool]] = []  # (end, machine, shards, whether it fails)
        heapq.heapify(waiting)
        while left or running:
            if left and waiting and (not running or waiting[0][0] <= running[0][0]):
                time, node = heapq.heappop(waiting)
                taken = min(left, queue.slots)
                left -= taken
                finish, fails = time + queue.seconds, float(self.fails[node])
                heapq.heappush(running, (min(finish, max(fails, time)), node, taken, fails < finish))
                continue
            time, node, taken, failed = heapq.heappop(running)
            if failed:
                left += taken
                self._fail(np.array([node]))
                heapq.heappush(waiting, (float(self.free[node]), node))
                # An idle machine can take the lost shards only from now on.
                waiting = [(max(free, time), index) for free, index in waiting]
                heapq.heapify(waiting)
            else:
                end = max(end, time)
                self.free[node] = time
                heapq.heappush(waiting, (time, node))
        return end


def simulate_training(training: Training, faults: FailureRates, random: np.random.Generator) -> SimulationResult:
    """Simulates a training from time 0. Raises NeverEndsError if it would hardly ever reach its next checkpoint.

    Every interval is retried until it passes. Failures of the group are Poisson, so attempts are independent: their
    number per interval is geometric, and the time lost in each is exponential, truncated at the interval.
    """
    rate = faults.rate * training.nodes
    count = max(1, math.ceil(training.seconds / training.interval))
    lengths = np.full(count, training.interval + training.save)
    lengths[-1] = training.seconds - (count - 1) * training.interval + training.save
    if rate == 0:
        return SimulationResult(0.0, float(lengths.sum()), 0, 0.0)
    whole = float(np.exp(-rate * lengths[0]))
    recovers = float(np.exp(-rate * faults.restart))
    if whole * recovers < HOPELESS:
        raise NeverEndsError(
            f"a failure every {1 / rate:.0f} s, and {training.interval:.0f} s between checkpoints: it never ends; "
            f"save every {find_best_interval(rate, max(training.save, 1.0)):.0f} s, or take fewer machines"
        )
    failures = random.geometric(np.exp(-rate * lengths)) - 1
    hit = np.repeat(lengths, failures)
    spent = _cut_exponential(rate, hit, random)
    # Each failure waits for the machine; a restart may fail too and is then repeated.
    again = random.geometric(recovers, hit.size) - 1
    broken = _cut_exponential(rate, np.full(int(again.sum()), faults.restart), random)
    waits = (hit.size + broken.size) * faults.repair + hit.size * faults.restart
    lost = float(spent.sum() + broken.sum() + waits)
    return SimulationResult(0.0, float(lengths.sum()) + lost, int(hit.size + broken.size), lost * training.nodes)


def _cut_exponential(rate: float, lengths: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Samples failure times conditioned on being below ``lengths``."""
    return -np.log1p(random.random(lengths.size) * np.expm1(-rate * lengths)) / rate


def find_best_interval(rate: float, save: float) -> float:
    """Returns the seconds between checkpoints that lose least: sqrt(2 save / rate) (Young 1974)."""
    return math.sqrt(2 * save / rate) if rate else math.inf
