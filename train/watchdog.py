"""Guards of long runs: hung processes, stalled loaders, non-finite losses, loss spikes."""

from __future__ import annotations

import faulthandler
import math
import sys
import time

SPIKE_SIGMAS = 6.0  # standard deviations above the running mean that make a spike
SPIKE_DECAY = 0.9  # of running mean and variance, per log window
SPIKE_WARMUP = 10  # log windows before spikes are detected


class Watchdog:
    """Ends the process and prints all stacks to stderr if `feed` is not called in time, so that it can be restarted.

    The timer is a C thread, so that it fires even if code holds the GIL.
    """

    SLACK = 0.02  # share of the timeout within which the timer is not restarted: each restart creates a thread

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started = seconds, -math.inf

    def feed(self) -> None:
        """Restarts the timer."""
        now = time.monotonic()
        if now - self.started < self.SLACK * self.seconds:
            return
        self.started = now
        faulthandler.dump_traceback_later((1 + self.SLACK) * self.seconds, exit=True, file=sys.__stderr__ or 2)

    def stop(self) -> None:
        """Cancels the timer."""
        self.started = -math.inf
        faulthandler.cancel_dump_traceback_later()


class SpikeDetector:
    """Detects log windows whose loss is far above an exponentially decayed mean of the previous ones."""

    def __init__(self, state: dict[str, float] | None = None) -> None:
        self.state = dict(state or {"mean": 0.0, "variance": 0.0, "windows": 0})

    def check(self, loss: float) -> float | None:
        """Returns by how many standard deviations ``loss`` is a spike; else None, and updates mean and variance."""
        state = self.state
        deviation = math.sqrt(state["variance"])
        warm = state["windows"] >= SPIKE_WARMUP
        sigmas = (loss - state["mean"]) / max(deviation, 1e-3 * abs(state["mean"]), 1e-12)
        if warm and sigmas > SPIKE_SIGMAS:
            return sigmas  # excluded from the statistics, so that a second spike is detected too
        decay = min(SPIKE_DECAY, state["windows"] / (state["windows"] + 1))
        difference = loss - state["mean"]
        state["mean"] += (1 - decay) * difference
        state["variance"] = decay * (state["variance"] + (1 - decay) * difference**2)
        state["windows"] += 1
        return None
