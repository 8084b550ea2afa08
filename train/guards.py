"""What keeps a long run honest: stop notices, hung processes, loss spikes."""

from __future__ import annotations

import faulthandler
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

SPIKE_SIGMAS = 6.0  # a window's loss this far above the usual one is noted
SPIKE_MEMORY = 0.9  # decay of what is usual, a window
SPIKE_WARMUP = 10  # windows before anything is usual


class NonFiniteError(RuntimeError):
    """Too many updates in a row had a loss or gradient that is not finite."""


class StalledLoaderError(RuntimeError):
    """The loader did not give a batch in time."""


class Preempted(RuntimeError):  # noqa: N818, a notice and no error
    """A stop notice was followed: the run is saved at `step` and can be resumed."""

    def __init__(self, step: int, path: str) -> None:
        super().__init__(f"stopped on notice at step {step}, saved as {path}")
        self.step, self.path = step, path

    def __reduce__(self) -> Any:
        return Preempted, (self.step, self.path)


STOP = threading.Event()  # set by whoever learns that this process is to leave: a signal, a cluster's notice


class StopNotice:
    """`STOP` on any rank: every rank learns of it at the same step.

    Each step the ranks exchange a flag over a group of their own, and read it a step later, so nobody waits for it.
    """

    def __init__(self, world: int, timeout: float) -> None:
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if world > 1 else None
        self.pending: tuple[Any, torch.Tensor] | None = None

    def agreed(self) -> bool:
        """Whether all ranks know of a notice. Called once a step by every rank."""
        if self.group is None:
            return STOP.is_set()
        before, mine = self.pending, torch.tensor(int(STOP.is_set()))
        self.pending = (dist.all_reduce(mine, group=self.group, async_op=True), mine)
        if before is None:
            return False
        work, total = before
        work.wait()
        return bool(total.item())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGTERM for `STOP` while inside, in the main thread; in another Python allows no handler."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        before = signal.signal(signal.SIGTERM, lambda *_: STOP.set())
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
            STOP.clear()


class Watchdog:
    """Ends the process, all its stacks on stderr, where `feed` is not called in time: what hangs cannot be resumed.

    The timer is a plain thread outside of Python, so that code which holds the interpreter's lock is caught too.
    """

    SLACK = 0.02  # share of the time in which it is not started again: that makes a thread each time

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started = seconds, -math.inf

    def feed(self) -> None:
        """Starts the time again."""
        now = time.monotonic()
        if now - self.started < self.SLACK * self.seconds:
            return
        self.started = now
        faulthandler.dump_traceback_later((1 + self.SLACK) * self.seconds, exit=True, file=sys.__stderr__ or 2)

    def stop(self) -> None:
        """Ends the watch."""
        self.started = -math.inf
        faulthandler.cancel_dump_traceback_later()


class Spikes:
    """Notes windows whose loss is far above the usual: an exponentially decayed mean and variance of those before."""

    def __init__(self, state: dict[str, float] | None = None) -> None:
        self.state = dict(state or {"mean": 0.0, "variance": 0.0, "windows": 0})

    def check(self, loss: float) -> float | None:
        """How many deviations ``loss`` lies above the usual where that is a spike, else None; learns from it then."""
        state = self.state
        deviation = math.sqrt(state["variance"])
        usual = state["windows"] >= SPIKE_WARMUP
        sigmas = (loss - state["mean"]) / max(deviation, 1e-3 * abs(state["mean"]), 1e-12)
        if usual and sigmas > SPIKE_SIGMAS:
            return sigmas  # not learned from: a second spike is one too
        memory = min(SPIKE_MEMORY, state["windows"] / (state["windows"] + 1))
        difference = loss - state["mean"]
        state["mean"] += (1 - memory) * difference
        state["variance"] = memory * (state["variance"] + (1 - memory) * difference**2)
        state["windows"] += 1
        return None
