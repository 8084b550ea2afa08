"""The stage graph on N machines that fail: a simulation by events, seeded, that takes seconds at any size.

Machines fail as a Poisson process each, and are replaced after a time. A data stage is a bag of equal shards: each
machine works on as many at once as it has slots, a failure loses those that it had at work, and they are done again by
whoever is free. Events are of machines, not of shards or URLs: while much is left, all machines are advanced together
to a common time (arrays); the last shards are then dealt out one machine at a time. A training gang stands still with
each of its machines: it restarts from its last checkpoint once the machine is replaced.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

HOPELESS = 1e-4  # chance of a checkpoint interval to pass without a failure, below which training never ends
BULK = 4  # rounds of shards that are left for dealing out one machine at a time


@dataclass(frozen=True)
class Faults:
    """How machines fail. Times in seconds."""

    rate: float  # failures of a machine a second
    repair: float  # until a lost machine is replaced
    restart: float = 0.0  # until a gang stands again after that


@dataclass(frozen=True)
class Bag:
    """A data stage: ``shards`` equal pieces of ``seconds`` each, ``slots`` at a time on each of ``nodes`` machines."""

    shards: int
    seconds: float
    nodes: int
    slots: int = 1


@dataclass(frozen=True)
class Training:
    """A gang of ``nodes`` machines with ``seconds`` of work, a checkpoint every ``interval`` that takes ``save``."""

    seconds: float
    nodes: int
    interval: float
    save: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """When a stage began and ended, failures that hit it, and machine-seconds that it lost to them."""

    start: float
    end: float
    failures: int
    lost: float


class NeverEndsError(ValueError):
    """Failures come faster than checkpoints."""


def simulate(
    stages: Mapping[str, Bag | Training], inputs: Mapping[str, Sequence[str]], faults: Mapping[str, Faults], seed: int
) -> dict[str, Outcome]:
    """The stages in order, each begun when its ``inputs`` have ended; ``faults`` by stage.

    Stages that do not wait for each other run side by side, on machines of their own.
    """
    random = np.random.default_rng(seed)
    done: dict[str, Outcome] = {}
    for name, stage in stages.items():
        start = max((done[before].end for before in inputs.get(name, ()) if before in done), default=0.0)
        run = run_bag if isinstance(stage, Bag) else run_training
        outcome = run(stage, faults[name], random)  # type: ignore[arg-type]
        done[name] = Outcome(start, start + outcome.end, outcome.failures, outcome.lost)
    return done


def run_bag(bag: Bag, faults: Faults, random: np.random.Generator) -> Outcome:
    """One data stage from time 0."""
    fleet = _Fleet(bag, faults, random)
    left = bag.shards
    round_size = bag.nodes * bag.slots
    while left > BULK * round_size:
        # To half of what is left, at least a round: machines stay together in time, however often each one fails.
        rounds = max(1, (left // round_size - BULK) // 2)
        left -= fleet.advance(float(fleet.free.min()) + rounds * bag.seconds)
    end = fleet.deal(left)
    return Outcome(0.0, end, fleet.failures, fleet.lost)


class _Fleet:
    """Machines at work on a bag: when each is free next, and when each fails next."""

    def __init__(self, bag: Bag, faults: Faults, random: np.random.Generator) -> None:
        self.bag, self.faults, self.random = bag, faults, random
        self.free = np.zeros(bag.nodes)
        self.fails = self._lifetimes(bag.nodes)
        self.failures, self.lost = 0, 0.0

    def _lifetimes(self, count: int) -> np.ndarray:
        if self.faults.rate == 0:
            return np.full(count, np.inf)
        return self.random.exponential(1 / self.faults.rate, count)

    def advance(self, until: float) -> int:
        """Every machine begins shards until that time; those that it ends are counted."""
        bag, done = self.bag, 0
        while (behind := np.flatnonzero(self.free < until)).size:
            rounds = np.ceil((until - self.free[behind]) / bag.seconds)
            survives = np.floor((self.fails[behind] - self.free[behind]) / bag.seconds)
            whole = np.maximum(0, np.minimum(rounds, survives))
            done += int(whole.sum()) * bag.slots
            self.free[behind] += whole * bag.seconds
            self._fail(behind[survives < rounds])
        return done

    def _fail(self, broken: np.ndarray) -> None:
        """These machines fail at their time, lose what they were at, and come back."""
        at = self.fails[broken]
        self.lost += float(np.maximum(0.0, at - self.free[broken]).sum()) + broken.size * self.faults.repair
        self.failures += int(broken.size)
        self.free[broken] = np.maximum(at, self.free[broken]) + self.faults.repair
        self.fails[broken] = self.free[broken] + self._lifetimes(broken.size)

    def deal(self, left: int) -> float:
        """The last shards, dealt out to whoever is free; the time when all are done."""
        bag, end = self.bag, 0.0
        waiting = [(float(time), node) for node, time in enumerate(self.free)]  # free machines
        running: list[tuple[float, int, int, bool]] = []  # when it ends, machine, shards, whether it fails
        heapq.heapify(waiting)
        while left or running:
            if left and waiting and (not running or waiting[0][0] <= running[0][0]):
                time, node = heapq.heappop(waiting)
                taken = min(left, bag.slots)
                left -= taken
                finish, fails = time + bag.seconds, float(self.fails[node])
                heapq.heappush(running, (min(finish, max(fails, time)), node, taken, fails < finish))
                continue
            time, node, taken, failed = heapq.heappop(running)
            if failed:
                left += taken
                self._fail(np.array([node]))
                heapq.heappush(waiting, (float(self.free[node]), node))
                # A machine that had nothing to do is free for what came back, from this moment on.
                waiting = [(max(free, time), index) for free, index in waiting]
                heapq.heapify(waiting)
            else:
                end = max(end, time)
                self.free[node] = time
                heapq.heappush(waiting, (time, node))
        return end


def run_training(training: Training, faults: Faults, random: np.random.Generator) -> Outcome:
    """One training from time 0. Raises NeverEndsError where it would hardly ever reach its next checkpoint.

    Every interval is tried until it passes whole. The gang's failures are Poisson, so the tries are independent: how
    many fail before each interval is geometric, and how far each got an exponential cut off at the interval's length.
    """
    rate = faults.rate * training.nodes
    count = max(1, math.ceil(training.seconds / training.interval))
    lengths = np.full(count, training.interval + training.save)
    lengths[-1] = training.seconds - (count - 1) * training.interval + training.save
    if rate == 0:
        return Outcome(0.0, float(lengths.sum()), 0, 0.0)
    whole = float(np.exp(-rate * lengths[0]))
    recovers = float(np.exp(-rate * faults.restart))
    if whole * recovers < HOPELESS:
        raise NeverEndsError(
            f"a failure every {1 / rate:.0f} s, and {training.interval:.0f} s between checkpoints: it never ends; "
            f"save every {best_interval(rate, max(training.save, 1.0)):.0f} s, or take fewer machines"
        )
    failures = random.geometric(np.exp(-rate * lengths)) - 1
    hit = np.repeat(lengths, failures)
    spent = _cut_exponential(rate, hit, random)
    # Each failure waits for the machine; a restart may be hit too, and is then begun again.
    again = random.geometric(recovers, hit.size) - 1
    broken = _cut_exponential(rate, np.full(int(again.sum()), faults.restart), random)
    waits = (hit.size + broken.size) * faults.repair + hit.size * faults.restart
    lost = float(spent.sum() + broken.sum() + waits)
    return Outcome(0.0, float(lengths.sum()) + lost, int(hit.size + broken.size), lost * training.nodes)


def _cut_exponential(rate: float, lengths: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Times of failures that are known to come before ``lengths``."""
    return -np.log1p(random.random(lengths.size) * np.expm1(-rate * lengths)) / rate


def expected_training(training: Training, faults: Faults) -> float:
    """Seconds that a training takes in the mean (Daly 2006, equation 20, with the wait for a machine added).

    With the mean time M between failures of the gang, interval t, save s, restart r and repair p, each interval takes
    (M + p) e^(r / M) (e^((t + s) / M) - 1).
    """
    rate = faults.rate * training.nodes
    if rate == 0:
        return training.seconds + training.save * math.ceil(training.seconds / training.interval)
    each = (1 / rate + faults.repair) * math.exp(rate * faults.restart)
    return training.seconds / training.interval * each * math.expm1(rate * (training.interval + training.save))


def best_interval(rate: float, save: float) -> float:
    """Seconds between checkpoints that lose least: sqrt(2 save / rate) (Young 1974)."""
    return math.sqrt(2 * save / rate) if rate else math.inf
