"""Training of a cascade stage on a number of machines: which setting fits, and the time per step with its bound."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from pipeline.config import NetworkTraining
from pipeline.planner.catalog import Assumptions, Machine
from pipeline.planner.host import loader_cores
from pipeline.planner.memory import Fit, MemorySetting, find_smallest_fit
from pipeline.planner.network import (
    Activations,
    NetworkConfig,
    build_network,
    count_discriminator_flops,
    count_forward_flops,
    trace_activations,
)
from pipeline.units import HOUR
from train.models.adapters.config import AdapterConfig
from train.models.adapters.registry import ADAPTERS
from train.tasks.adversarial_config import AdversarialConfig
from train.tasks.distillation_config import DistillationTrainingConfig
from train.tasks.vq_config import VqTrainingConfig

BACKWARD, RECOMPUTE = 2, 1  # forward passes' worth of operations of the backward pass, and of recomputing the blocks
# Of a discriminator, in its own forward passes of one image: it learns from a real and a made image, and judges the
# made one for the network, whose backward pass goes through its frozen weights; then the penalty at real images.
JUDGED, PENALTY = 2 * 3 + 2, 3
BACKWARD_FROZEN = 1  # of the backward pass through frozen weights, which need no gradients


def count_trained_parameters(config: NetworkConfig, adapter: AdapterConfig | None) -> int:
    """Returns the number of parameters that training updates, without allocating them."""
    with torch.device("meta"):
        model = build_network(config)
        if adapter is not None:
            ADAPTERS[adapter.kind]()(model, adapter)
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@dataclass(frozen=True)
class StageModel:
    """What the network of an entry of `train` costs, independent of the machine."""

    name: str
    config: NetworkTraining
    text_dim: int
    tokens: int
    group_rows: int = 128  # of the pack's row groups
    host_ms: float = 0.0  # of a core per training sample, in the loader's threads
    image_dim: int | None = None  # width of CLIP's embeddings

    @cached_property
    def layout(self) -> NetworkConfig:
        """The network's config."""
        if isinstance(self.config, VqTrainingConfig):
            return self.config.autoencoder_config()
        return self.config.denoiser_config(self.text_dim, self.image_dim)

    @property
    def side(self) -> int:
        """Pixels per side of a training sample."""
        return self.config.crop or self.config.resolution

    @cached_property
    def parameters(self) -> int:
        """Trained parameters."""
        return count_trained_parameters(self.layout, self.config.adapter)

    @cached_property
    def all_parameters(self) -> int:
        """Parameters of the network without an adapter."""
        return count_trained_parameters(self.layout, None)

    @property
    def backward(self) -> int:
        """Forward passes' worth of operations of the backward pass."""
        return BACKWARD if self.config.adapter is None else BACKWARD_FROZEN

    @cached_property
    def forward(self) -> int:
        """FLOPs of a forward pass of one training sample, in the mean over the updates."""
        if isinstance(self.config, VqTrainingConfig):
            return self._full
        early = min(1.0, self.config.half_size_steps / self.config.steps)
        small = count_forward_flops(self.layout, self.side // 2, self.tokens) if early else 0
        return round(early * small + (1 - early) * self._full)

    @cached_property
    def whole(self) -> int:
        """FLOPs of a forward pass of a whole image, as in sampling."""
        if self.side == self.config.resolution:
            return self._full
        return count_forward_flops(self.layout, self.config.resolution, self.tokens)

    @cached_property
    def _full(self) -> int:
        return count_forward_flops(self.layout, self.side, self.tokens)

    @property
    def teacher(self) -> int:
        """Forward passes of a teacher for one of the student."""
        if not isinstance(self.config, DistillationTrainingConfig):
            return 0
        settings = self.config.distillation
        return settings.teacher_steps * (1 if settings.guidance == 1 else 2)

    @cached_property
    def discriminator(self) -> float:
        """FLOPs of a discriminator per training sample, in the mean over the updates; 0 without one."""
        settings: AdversarialConfig | None = getattr(self.config, "adversarial", None)
        if settings is None:
            return 0.0
        passes = JUDGED + (PENALTY / settings.r1_every if settings.r1 else 0)
        share = 1 - settings.start / self.config.steps
        return share * passes * count_discriminator_flops(settings, self.layout.image_channels, self.side)

    @property
    def update_flops(self) -> float:
        """FLOPs of one step without recomputation."""
        each = (1 + self.backward + self.teacher) * self.forward + self.discriminator
        return float(each * self.config.batch_size)

    @property
    def samples(self) -> int:
        """Samples seen in training."""
        return self.config.steps * self.config.batch_size

    def own_setting(self, on_gpu: bool = True) -> MemorySetting:
        """Returns the config's setting on a GPU or a CPU."""
        own = self.config.resolve(on_gpu, self.parameters)
        assert own.zero_stage != "auto" and own.precision != "auto"
        return MemorySetting(own.optimizer, own.zero_stage, own.offload, own.activation_checkpointing, own.precision)

    def activations(self, setting: MemorySetting) -> Activations:
        """Returns the activations of a micro batch under a setting, and with them the weights of a teacher."""
        found = trace_activations(
            self.layout,
            self.side,
            self.tokens,
            setting.precision,
            setting.recompute,
            setting.autocast,
            self.config.adapter,
        )
        if not self.teacher:
            return found
        return replace(found, fixed=found.fixed + self.all_parameters * (2 if setting.precision == "bf16" else 4))


@dataclass(frozen=True)
class TrainingGroup:
    """A stage's training on ``nodes`` machines. Seconds are per step."""

    stage: str
    nodes: int
    ranks: int
    fit: Fit
    compute: float
    network: float  # collectives, not overlapped
    offload: float
    loader: float  # reading batches, overlapped with the rest
    host: float  # decoding and gathering batches on the machine's cores, overlapped too
    loader_gbit: float  # read per machine at the planned speed
    steps: int

    @property
    def step(self) -> float:
        """Seconds per step."""
        return max(self.compute + self.network + self.offload, self.loader, self.host)

    @property
    def hours(self) -> float:
        """Hours of the whole training without failures."""
        return self.step * self.steps / HOUR

    @property
    def bound(self) -> str:
        """The slowest part."""
        parts = {"GPU": self.compute, "network": self.network, "offloading": self.offload}
        ahead = {"loader": self.loader, "CPU": self.host}  # beside the others, not after them
        slowest = max(ahead, key=lambda name: ahead[name])
        return slowest if ahead[slowest] > sum(parts.values()) else max(parts, key=lambda name: parts[name])


def plan_group(
    model: StageModel, machine: Machine, nodes: int, assumptions: Assumptions, sample_bytes: float
) -> TrainingGroup | None:
    """Returns the stage on ``nodes`` machines with the smallest setting that fits.

    None if none fits, or if the ranks do not divide the batch. ``sample_bytes``: bytes of pack and embeddings that a
    training sample reads.
    """
    config, ranks = model.config, machine.units * nodes
    if config.batch_size % ranks:
        return None
    fit = find_smallest_fit(
        model.parameters,
        config.optimizer,
        config.resolve_precision(machine.gpus > 0),
        config.batch_size // ranks,
        machine,
        nodes,
        assumptions,
        model.activations,
    )
    if fit is None:
        return None
    passes = 1 + model.backward + model.teacher + (RECOMPUTE if fit.setting.recompute else 0)
    compute = (
        (passes * model.forward + model.discriminator)
        * config.batch_size
        / (ranks * machine.tflops * 1e12 * machine.mfu)
    )
    if machine.gpus:
        micro_batches = config.batch_size // (ranks * fit.micro_batch)
        compute = max(compute, micro_batches * assumptions.launch_ms / 1e3)
    network = _estimate_collectives(model, fit, config.batch_size // ranks, machine, nodes, assumptions)
    offload = 0.0
    if fit.setting.offload != "none":
        offload = model.parameters / (assumptions.offload_params_per_second * nodes)
    reading = config.batch_size * sample_bytes * _estimate_read_share(model, nodes, sample_bytes)
    loader = reading * 8 / (machine.internet_gbit * 1e9 * assumptions.network_share)
    cores = loader_cores(config, machine.cores, machine.units)
    host = model.host_ms / 1e3 * config.batch_size / (nodes * cores) if machine.gpus else 0.0
    step = max(compute + network + offload, loader, host)
    gbit = reading * 8 / step / 1e9
    return TrainingGroup(model.name, nodes, ranks, fit, compute, network, offload, loader, host, gbit, config.steps)


def _estimate_read_share(model: StageModel, nodes: int, sample_bytes: float) -> float:
    """Returns the share of a window that a machine reads: its rows, the loader's margin, and half row groups."""
    rows = max(model.config.batch_size, (model.config.data.window_mb << 20) / sample_bytes)
    margin = 2 / math.sqrt(model.config.batch_size)
    return 1.0 if nodes == 1 else min(1.0, 1 / nodes + margin + model.group_rows / rows)


def _estimate_collectives(
    model: StageModel, fit: Fit, rank_batch: int, machine: Machine, nodes: int, assumptions: Assumptions
) -> float:
    """Returns seconds per step to reduce gradients and gather weights, in rings within and then between machines.

    ZeRO 3 gathers the weights twice per micro batch. Reductions overlap with the backward pass; how much of them a GPU
    hides is not measured yet, so all of it counts.
    """
    size, whole = (float(fit.setting.weight_bytes * count) for count in (model.parameters, model.all_parameters))
    micro = rank_batch // fit.micro_batch
    reduced = micro if fit.setting.zero >= 2 else 1  # sharded gradients are reduced after every micro batch
    moved = size * reduced + (2 * micro * max(whole, size) if fit.setting.zero == 3 else size)
    share, units = assumptions.network_share, machine.units
    inside = moved * (units - 1) / units / (machine.link_gb_s * 1e9 * share)
    between = moved * (nodes - 1) / nodes / (machine.network_gbit / 8 * 1e9 * share)
    return inside + between
