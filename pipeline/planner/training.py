"""A cascade stage's training on a number of machines: which setting fits, how long an update takes, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from pipeline.config import CascadeStageConfig
from pipeline.planner.memory import Fit, Setting, smallest_fit
from pipeline.planner.network import Activations, activations, forward_flops
from pipeline.planner.table import Assumptions, Machine
from pipeline.planner.units import HOUR
from train.models.presets import parameter_count, unet_config
from train.models.unet import UNetConfig

BACKWARD, RECOMPUTE = 2, 1  # passes' worth of operations of the backward pass, and of computing the blocks again


@dataclass(frozen=True)
class StageModel:
    """What a cascade stage's network costs, whatever it is trained on."""

    name: str
    config: CascadeStageConfig
    text_dim: int
    tokens: int
    group_rows: int = 128  # of the pack's row groups

    @cached_property
    def layout(self) -> str:
        """The U-Net's config as JSON."""
        return self._unet.model_dump_json()

    @property
    def side(self) -> int:
        """Pixels a side of what it is trained on."""
        return self.config.crop or self.config.resolution

    @cached_property
    def parameters(self) -> int:
        """Trained parameters."""
        return parameter_count(self._unet)

    @cached_property
    def forward(self) -> int:
        """Operations of a forward pass of one training sample."""
        return forward_flops(self._unet, self.side, self.tokens)

    @cached_property
    def whole(self) -> int:
        """The same of a whole picture, as in sampling."""
        if self.side == self.config.resolution:
            return self.forward
        return forward_flops(self._unet, self.config.resolution, self.tokens)

    @property
    def _unet(self) -> UNetConfig:
        return unet_config(self.config.model, **(self.config.unet | {"text_dim": self.text_dim}))

    @property
    def update_flops(self) -> float:
        """Operations of one update, nothing recomputed."""
        return float((1 + BACKWARD) * self.forward * self.config.batch_size)

    @property
    def samples(self) -> int:
        """Samples that the whole training sees."""
        return self.config.steps * self.config.batch_size

    def own_setting(self) -> Setting:
        """As the config has it."""
        own = self.config
        return Setting(own.optimizer, own.zero_stage, own.offload, own.activation_checkpointing, own.precision)

    def activations(self, setting: Setting) -> Activations:
        """Of a micro batch under a setting."""
        return activations(self.layout, self.side, self.tokens, setting.precision, setting.recompute, setting.autocast)


@dataclass(frozen=True)
class Gang:
    """A stage's training on ``nodes`` machines. Seconds are of one update."""

    stage: str
    nodes: int
    ranks: int
    fit: Fit
    compute: float
    network: float  # collectives, not hidden behind the computation
    offload: float
    loader: float  # what reading batches would take alone; it goes on beside the rest
    loader_gbit: float  # that a machine reads at the planned speed
    steps: int

    @property
    def step(self) -> float:
        """Seconds of an update."""
        return max(self.compute + self.network + self.offload, self.loader)

    @property
    def hours(self) -> float:
        """Of the whole training, nothing lost."""
        return self.step * self.steps / HOUR

    @property
    def bound(self) -> str:
        """What takes most."""
        parts = {"GPU": self.compute, "network": self.network, "offloading": self.offload}
        return "loader" if self.loader > sum(parts.values()) else max(parts, key=lambda name: parts[name])


def gang(model: StageModel, machine: Machine, nodes: int, assumptions: Assumptions, sample_bytes: float) -> Gang | None:
    """The stage on so many machines with the smallest setting that fits; None where none fits.

    ``sample_bytes``: what a training sample reads of pack and embeddings. A number of machines whose ranks do not
    divide the batch is None too.
    """
    config, ranks = model.config, machine.units * nodes
    if config.batch_size % ranks:
        return None
    fit = smallest_fit(
        model.parameters,
        config.optimizer,
        config.precision,
        config.batch_size // ranks,
        machine,
        nodes,
        assumptions,
        model.activations,
    )
    if fit is None:
        return None
    passes = 1 + BACKWARD + (RECOMPUTE if fit.setting.recompute else 0)
    compute = passes * model.forward * config.batch_size / (ranks * machine.tflops * 1e12 * machine.mfu)
    if machine.gpus:
        micro_batches = config.batch_size // (ranks * fit.micro_batch)
        compute = max(compute, micro_batches * assumptions.launch_ms / 1e3)
    network = _collectives(model.parameters, fit, config.batch_size // ranks, machine, nodes, assumptions)
    offload = 0.0
    if fit.setting.offload != "none":
        offload = model.parameters / (assumptions.offload_params_per_second * nodes)
    reading = config.batch_size * sample_bytes * _read_share(model, nodes, sample_bytes)
    loader = reading * 8 / (machine.internet_gbit * 1e9 * assumptions.network_share)
    step = max(compute + network + offload, loader)
    gbit = reading * 8 / step / 1e9
    return Gang(model.name, nodes, ranks, fit, compute, network, offload, loader, gbit, config.steps)


def _read_share(model: StageModel, nodes: int, sample_bytes: float) -> float:
    """The share of a window that a machine reads: its own rows, the margin of `train.data`, a row group cut in two."""
    rows = max(model.config.batch_size, (model.config.data.window_mb << 20) / sample_bytes)
    margin = 2 / math.sqrt(model.config.batch_size)
    return 1.0 if nodes == 1 else min(1.0, 1 / nodes + margin + model.group_rows / rows)


def _collectives(
    parameters: int, fit: Fit, rank_batch: int, machine: Machine, nodes: int, assumptions: Assumptions
) -> float:
    """Seconds an update: gradients are reduced and weights gathered, in rings within and then between machines.

    ZeRO 3 gathers the weights twice a micro batch. DeepSpeed hides next to nothing of this in ZeRO 0 to 2, and as we
    ask for it in ZeRO 3 neither.
    """
    size = float(fit.setting.weight_bytes * parameters)
    micro = rank_batch // fit.micro_batch
    reduced = micro if fit.setting.zero >= 2 else 1  # sharded gradients are reduced after every micro batch
    gathered = 2 * micro if fit.setting.zero == 3 else 1
    moved = size * (reduced + gathered)
    share, units = assumptions.network_share, machine.units
    inside = moved * (units - 1) / units / (machine.link_gb_s * 1e9 * share)
    between = moved * (nodes - 1) / nodes / (machine.network_gbit / 8 * 1e9 * share)
    return inside + between
