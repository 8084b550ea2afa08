"""Memory of a rank by ZeRO stage and offload, as `train.engine` uses it, and the smallest setting that fits.

With P trained parameters, N ranks, b bytes a weight in the network (4; with bf16 and ZeRO 2):

    ZeRO   weights   gradients   masters   moments   EMA       buckets
    0      4 P       4 P         -         8 P       4 P       -
    1      b P       b P         4 P / N   8 P / N   4 P / N   2 b min(P, 5e8)
    2      b P       b P / N     4 P / N   8 P / N   4 P / N   2 b min(P, 5e8)
    3      b P / N   b P / N     4 P / N   8 P / N   4 P / N   b min(P, 5e8) + b min(P, 1e9) gathered

Two buckets in ZeRO 1 and 2, since one is reduced while the other is filled. ZeRO 2 sums the gradients of several
micro-batches in fp32: then b is 4 for gradients and buckets. Below 50M parameters DeepSpeed keeps gradients in place
instead of in a bucket, so they overlap with live activations.
ZeRO 3 does not shard parameters of up to 1e5 elements.

Frozen parameters, beside an adapter, count as weights (and as gathered) alone.

Adafactor (ZeRO 0 only) keeps a row and a column of each matrix instead of 8 P, Muon (ZeRO 0 only) one moment, 4 P.
Offloaded state is in machine memory.
The step makes the fp32 partition of the gradients, 4 P / N, when no activations are live.
`benchmarks/zero_memory.py` and `benchmarks/plan.py` hold this against what training processes hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from pipeline.planner.catalog import Assumptions, Machine
from pipeline.planner.network import Activations
from train.config import SHARD_FROM
from train.deepspeed_config import CONTIGUOUS_ABOVE, MAX_BUCKET, MAX_LIVE


class OptimizerMemory(NamedTuple):
    """An optimizer's name in texts, and the bytes per parameter of its moments."""

    title: str
    moments: float


OPTIMIZERS = {
    "adamw": OptimizerMemory("AdamW", 8.0),
    "adafactor": OptimizerMemory("Adafactor", 0.001),
    "muon": OptimizerMemory("Muon", 4.0),  # of matrices, which are nearly all
}
HOST_SHARE = 0.9  # of a machine's own memory that offloaded state may take
Offload = Literal["none", "optimizer", "all"]


@dataclass(frozen=True)
class MemorySetting:
    """The part of a training config that decides its memory."""

    optimizer: str
    zero: int
    offload: Offload
    recompute: bool
    precision: str

    def __str__(self) -> str:
        parts = [OPTIMIZERS[self.optimizer].title, f"ZeRO {self.zero}"]
        parts += ["recompute"] if self.recompute else []
        parts += {"none": [], "optimizer": ["optimizer offloaded"], "all": ["all offloaded"]}[self.offload]
        return ", ".join(parts)

    @property
    def autocast(self) -> bool:
        """bf16 with fp32 weights."""
        return self.precision == "bf16" and self.zero == 0

    @property
    def weight_bytes(self) -> int:
        """Bytes per weight and per gradient in the network."""
        return 2 if self.precision == "bf16" and self.zero else 4


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank by content; ``host`` is machine memory, the rest device memory."""

    weights: float
    gradients: float
    optimizer: float  # masters and moments
    ema: float
    buckets: float
    activations: float
    update: float  # made by the optimizer step, when no activations are live
    host: float = 0.0

    @property
    def states(self) -> float:
        """Persistent bytes, gradients included."""
        return self.weights + self.gradients + self.optimizer + self.ema

    @property
    def device(self) -> float:
        """Peak bytes."""
        return self.states + self.buckets + max(self.activations, self.update)


def estimate_memory(
    parameters: int,
    setting: MemorySetting,
    ranks: int,
    followed: Activations,
    micro_batch: int,
    accumulates: bool = False,
) -> Memory:
    """Returns the memory of one of ``ranks`` ranks at a micro batch; ``accumulates``: an update has several of them."""
    own = setting.weight_bytes
    summed = 4 if accumulates and setting.zero == 2 and setting.offload == "none" else own
    activations = followed.with_gradients(micro_batch) if setting.zero >= 2 else followed.of(micro_batch)
    everything = parameters + followed.frozen
    weights, gradients = float(own * everything), float(summed * parameters)
    moments = OPTIMIZERS[setting.optimizer].moments
    if setting.zero == 0:
        return Memory(weights, gradients, moments * parameters, 4.0 * parameters, 0, activations, 0)
    optimizer, ema = (4 + moments) * parameters / ranks, 4.0 * parameters / ranks
    count = 1 if setting.zero == 3 else 2
    buckets = float(count * summed * min(parameters, MAX_BUCKET)) if parameters > CONTIGUOUS_ABOVE else 0.0
    if setting.zero >= 2:
        gradients /= ranks
    if setting.zero == 3:
        whole = own * followed.persistent
        weights = whole + (weights - whole) / ranks
        buckets += own * min(everything, MAX_LIVE)
    update = 4.0 * parameters / ranks if own == 2 else 0.0
    memory = Memory(weights, gradients, optimizer, ema, buckets, activations, update)
    if setting.offload == "none":
        return memory
    host = optimizer + ema + 4.0 * parameters / ranks
    memory = replace(memory, optimizer=0.0, ema=0.0, update=0.0, gradients=gradients if setting.zero == 1 else 0.0)
    return (
        replace(memory, host=host)
        if setting.offload == "optimizer"
        else replace(memory, weights=0.0, host=host + weights)
    )


def count_device_bytes(memory: Memory, machine: Machine, assumptions: Assumptions) -> float:
    """Returns the bytes that one device needs."""
    fixed = assumptions.memory_fixed_gb * 1e9 if machine.gpus else 0.0
    return memory.device * (1 + assumptions.memory_reserve) + fixed


@dataclass(frozen=True)
class Fit:
    """A setting that fits a machine."""

    setting: MemorySetting
    micro_batch: int
    memory: Memory
    needed: float  # bytes of a device


def list_settings(optimizer: str, precision: str, parameters: int = 0) -> Iterator[MemorySetting]:
    """Yields settings, fastest first: sharding costs network, recomputation a third more FLOPs, offloading most.

    ZeRO 0 only for models of which `zero_stage` auto shards nothing.
    """
    if optimizer != "adamw":
        for recompute in (False, True):
            yield MemorySetting(optimizer, 0, "none", recompute, precision)
    for recompute in (False, True):
        for zero in (0, 1, 2, 3) if parameters < SHARD_FROM else (1, 2, 3):
            yield MemorySetting("adamw", zero, "none", recompute, precision)
    yield MemorySetting("adamw", 2, "optimizer", True, precision)
    yield MemorySetting("adamw", 3, "optimizer", True, precision)
    yield MemorySetting("adamw", 3, "all", True, precision)


def find_smallest_fit(
    parameters: int,
    optimizer: str,
    precision: str,
    rank_batch: int,
    machine: Machine,
    nodes: int,
    assumptions: Assumptions,
    followed: Callable[[MemorySetting], Activations],
) -> Fit | None:
    """Returns the first setting that fits with ``assumptions.least_micro_batch``, else with any; None if none does.

    ``rank_batch``: samples per rank and step; a micro batch divides it.
    """
    ranks = machine.units * nodes
    least = min(assumptions.least_micro_batch, rank_batch)
    fits = (
        _fit_largest_batch(parameters, setting, rank_batch, ranks, machine, assumptions, followed)
        for setting in list_settings(optimizer, precision, parameters)
    )
    found = None
    for fit in fits:
        if fit is not None and fit.micro_batch >= least:
            return fit
        found = found or fit
    return found


def _fit_largest_batch(
    parameters: int,
    setting: MemorySetting,
    rank_batch: int,
    ranks: int,
    machine: Machine,
    assumptions: Assumptions,
    followed: Callable[[MemorySetting], Activations],
) -> Fit | None:
    """Returns the setting with the largest micro batch that fits and divides the rank's batch, at most 64."""
    empty = estimate_memory(parameters, setting, ranks, Activations(0, 0), 0)
    too_large = count_device_bytes(empty, machine, assumptions) > machine.memory_gb * 1e9
    if too_large or _measure_host_share(empty, machine) > HOST_SHARE:
        return None  # even without activations, which are costly to trace
    for micro in sorted((m for m in range(1, min(rank_batch, 64) + 1) if rank_batch % m == 0), reverse=True):
        memory = estimate_memory(parameters, setting, ranks, followed(setting), micro, micro < rank_batch)
        if (size := count_device_bytes(memory, machine, assumptions)) <= machine.memory_gb * 1e9:
            return Fit(setting, micro, memory, size)
    return None


def _measure_host_share(memory: Memory, machine: Machine) -> float:
    """Returns the share of the machine's memory that its ranks take."""
    return memory.host * machine.units / (machine.ram_gb * 1e9)
