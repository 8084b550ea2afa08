"""A run's counters and gauges for Prometheus, exported by the metrics agent of the driver's Ray node.

The driver alone sets them, from what workers and ranks report anyway: a sample costs nothing. Ray prefixes every name
with ``ray_``; `deploy/grafana_dashboard.json` shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

PREFIX = "imagen_ray"
TRAINING_GAUGES = {  # key of a row of log.jsonl -> description
    "step": "updates done",
    "loss": "mean training loss of the last log window",
    "validation_loss": "loss on held-out data",
    "lr": "learning rate",
    "grad_norm": "norm of the gradient before clipping",
    "samples_per_second": "samples per second, all ranks",
    "mfu": "share of the GPUs' peak that the model's operations use",
    "memory_mb": "peak memory of rank 0, MB",
    "skipped": "updates skipped since their gradient was not finite",
}
TIMES = ("data_ms", "forward_ms", "backward_ms", "step_ms")  # parts of an update; the first is the wait for a batch


def name_run(folder: str) -> str:
    """Returns the run's name, the last part of its path, from a folder ``RUN/stages/...`` of it."""
    return folder.partition("/stages/")[0].rstrip("/").rpartition("/")[2]


class ShardMetrics:
    """Metrics of a stage that maps a worker over shards."""

    def __init__(self, folder: str, stage: str) -> None:
        self.tags = {"run": name_run(folder), "stage": stage}
        keys = tuple(self.tags)
        self.counted = Counter(
            f"{PREFIX}_counted",
            "what finished shards counted: rows, rows by status and reason, bytes, images, tokens",
            (*keys, "counter"),
        )
        self.shards = Gauge(f"{PREFIX}_shards", "shards by state: done, quarantined, waiting", (*keys, "state"))
        self.retries = Counter(f"{PREFIX}_shard_retries", "shards that failed and are tried again", keys)
        self.workers = Gauge(f"{PREFIX}_workers", "worker processes by state: busy, idle, starting", (*keys, "state"))

    def add_counters(self, counters: Mapping[str, int]) -> None:
        """Adds the counters of a finished shard."""
        for name, value in counters.items():
            if value > 0:
                self.counted.inc(value, self.tags | {"counter": name})

    def set_shards(self, **states: int) -> None:
        """Sets the number of shards in each state."""
        for state, number in states.items():
            self.shards.set(number, self.tags | {"state": state})

    def set_workers(self, **states: int) -> None:
        """Sets the number of worker processes in each state."""
        for state, number in states.items():
            self.workers.set(number, self.tags | {"state": state})

    def add_retry(self) -> None:
        """Counts a shard that is tried again."""
        self.retries.inc(1, self.tags)


class TrainingMetrics:
    """Metrics of a training, from rows of its log."""

    def __init__(self, folder: str, stage: str) -> None:
        self.tags = {"run": name_run(folder), "stage": stage}
        keys = tuple(self.tags)
        self.gauges = {name: Gauge(f"{PREFIX}_train_{name}", text, keys) for name, text in TRAINING_GAUGES.items()}
        self.wait = Gauge(f"{PREFIX}_train_wait_share", "share of an update that waits for its batch", keys)
        self.ranks = Gauge(f"{PREFIX}_train_ranks", "ranks of the training group", keys)

    def set_row(self, row: Mapping[str, Any]) -> None:
        """Sets the gauges to the values of a row; those that it lacks stay."""
        for name, gauge in self.gauges.items():
            if row.get(name) is not None:
                gauge.set(row[name], self.tags)
        total = sum(row.get(name) or 0 for name in TIMES)
        if total:
            self.wait.set((row.get(TIMES[0]) or 0) / total, self.tags)

    def set_ranks(self, ranks: int) -> None:
        """Sets the number of ranks."""
        self.ranks.set(ranks, self.tags)
