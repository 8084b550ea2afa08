"""Memory of a rank, by ZeRO stage and offload, as this project's engine keeps it; and the smallest setting that fits.

With P parameters, N ranks, b bytes a weight in the network (4; with bf16 and ZeRO 2):

    ZeRO   weights   gradients   masters   moments   average   buckets
    0      4 P       4 P         -         8 P       4 P       -
    1      b P       b P         4 P / N   8 P / N   4 P / N   b min(P, 5e8)
    2      b P       b P / N     4 P / N   8 P / N   4 P / N   b min(P, 5e8)
    3      b P / N   b P / N     4 P / N   8 P / N   4 P / N   b min(P, 5e8) + b min(P, 1e9) gathered

A network of up to 50M parameters has no such bucket: its new gradients stay where they are until all are there, which
counts beside the activations that are then still live. ZeRO 3 leaves parameters of up to 1e5 elements whole.

Adafactor (ZeRO 0 alone) keeps a row and a column of each matrix in the place of 8 P. What is offloaded is in the
machine's memory instead. The step itself makes the gradients' fp32 partition, 4 P / N, when no activations are live.
`benchmarks/zero_memory.py` and `benchmarks/plan.py` hold this against what training processes hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.planner.network import CONTIGUOUS, Activations
from pipeline.planner.table import Assumptions, Machine

BUCKET = 500_000_000  # elements of DeepSpeed's gradient bucket, as train.config.ds_config bounds it
GATHERED = 1_000_000_000  # parameters that ZeRO 3 keeps gathered at most (stage3_max_live_parameters)
HOST_SHARE = 0.9  # of a machine's own memory that offloaded state may take
Offload = Literal["none", "optimizer", "all"]


@dataclass(frozen=True)
class Setting:
    """What of a training config decides how much memory it takes."""

    optimizer: str
    zero: int
    offload: Offload
    recompute: bool
    precision: str

    def __str__(self) -> str:
        parts = ["Adafactor" if self.optimizer == "adafactor" else "AdamW", f"ZeRO {self.zero}"]
        parts += ["recompute"] if self.recompute else []
        parts += {"none": [], "optimizer": ["optimizer offloaded"], "all": ["all offloaded"]}[self.offload]
        return ", ".join(parts)

    @property
    def autocast(self) -> bool:
        """bf16 with the weights themselves in fp32."""
        return self.precision == "bf16" and self.zero == 0

    @property
    def weight_bytes(self) -> int:
        """Bytes a weight and a gradient have in the network."""
        return 2 if self.precision == "bf16" and self.zero else 4


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank by what they hold; ``host`` is its part of the machine's memory, the others are the device's."""

    weights: float
    gradients: float
    optimizer: float  # masters and moments
    average: float
    buckets: float
    activations: float
    update: float  # what the update itself makes, when no activations are live
    host: float = 0.0

    @property
    def states(self) -> float:
        """What stays from step to step, gradients included."""
        return self.weights + self.gradients + self.optimizer + self.average

    @property
    def device(self) -> float:
        """The most that is live at once."""
        return self.states + self.buckets + max(self.activations, self.update)


def rank_memory(parameters: int, setting: Setting, ranks: int, followed: Activations, micro_batch: int) -> Memory:
    """Memory of one of ``ranks`` ranks at a micro batch."""
    own = setting.weight_bytes
    activations = followed.with_gradients(micro_batch) if setting.zero >= 2 else followed.of(micro_batch)
    weights, gradients = float(own * parameters), float(own * parameters)
    moments = 0.001 if setting.optimizer == "adafactor" else 8.0
    if setting.zero == 0:
        return Memory(weights, gradients, moments * parameters, 4.0 * parameters, 0, activations, 0)
    optimizer, average = (4 + moments) * parameters / ranks, 4.0 * parameters / ranks
    buckets = float(own * min(parameters, BUCKET)) if parameters > CONTIGUOUS else 0.0
    if setting.zero >= 2:
        gradients /= ranks
    if setting.zero == 3:
        whole = own * followed.persistent
        weights = whole + (weights - whole) / ranks
        buckets += own * min(parameters, GATHERED)
    update = 4.0 * parameters / ranks if own == 2 else 0.0
    memory = Memory(weights, gradients, optimizer, average, buckets, activations, update)
    if setting.offload == "none":
        return memory
    host = optimizer + average + 4.0 * parameters / ranks
    memory = replace(memory, optimizer=0.0, average=0.0, update=0.0, gradients=gradients if setting.zero == 1 else 0.0)
    return (
        replace(memory, host=host)
        if setting.offload == "optimizer"
        else replace(memory, weights=0.0, host=host + weights)
    )


def needed(memory: Memory, machine: Machine, assumptions: Assumptions) -> float:
    """Bytes that one device has to have."""
    fixed = assumptions.memory_fixed_gb * 1e9 if machine.gpus else 0.0
    return memory.device * (1 + assumptions.memory_reserve) + fixed


@dataclass(frozen=True)
class Fit:
    """A setting that fits a machine."""

    setting: Setting
    micro_batch: int
    memory: Memory
    needed: float  # bytes of a device


def settings(optimizer: str, precision: str) -> Iterator[Setting]:
    """Settings to try, the quickest first: what is sharded costs network, recomputing a third more, offloading most."""
    if optimizer == "adafactor":
        for recompute in (False, True):
            yield Setting("adafactor", 0, "none", recompute, precision)
    for recompute in (False, True):
        for zero in (1, 2, 3):
            yield Setting("adamw", zero, "none", recompute, precision)
    yield Setting("adamw", 2, "optimizer", True, precision)
    yield Setting("adamw", 3, "optimizer", True, precision)
    yield Setting("adamw", 3, "all", True, precision)


def smallest_fit(
    parameters: int,
    optimizer: str,
    precision: str,
    rank_batch: int,
    machine: Machine,
    nodes: int,
    assumptions: Assumptions,
    followed: Callable[[Setting], Activations],
) -> Fit | None:
    """The first of `settings` that fits at a micro batch worth the while, else at any; None where none does.

    ``rank_batch``: samples of an update that fall to a rank; a micro batch divides it.
    """
    ranks = machine.units * nodes
    least = min(assumptions.least_micro_batch, rank_batch)
    fits = (
        _largest(parameters, setting, rank_batch, ranks, machine, assumptions, followed)
        for setting in settings(optimizer, precision)
    )
    found = None
    for fit in fits:
        if fit is not None and fit.micro_batch >= least:
            return fit
        found = found or fit
    return found


def _largest(
    parameters: int,
    setting: Setting,
    rank_batch: int,
    ranks: int,
    machine: Machine,
    assumptions: Assumptions,
    followed: Callable[[Setting], Activations],
) -> Fit | None:
    """The setting at the largest micro batch that fits and divides the rank's share; beyond 64 nothing is gained."""
    empty = rank_memory(parameters, setting, ranks, Activations(0, 0), 0)
    if needed(empty, machine, assumptions) > machine.memory_gb * 1e9 or _host(empty, machine) > HOST_SHARE:
        return None  # without its activations already: they need not be followed
    for micro in sorted((m for m in range(1, min(rank_batch, 64) + 1) if rank_batch % m == 0), reverse=True):
        memory = rank_memory(parameters, setting, ranks, followed(setting), micro)
        if (size := needed(memory, machine, assumptions)) <= machine.memory_gb * 1e9:
            return Fit(setting, micro, memory, size)
    return None


def _host(memory: Memory, machine: Machine) -> float:
    """Share of the machine's own memory that its ranks take."""
    return memory.host * machine.units / (machine.ram_gb * 1e9)
