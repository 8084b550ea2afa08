"""Engine around a model: DeepSpeed, the optimizer with the EMA, and state by parameter under every ZeRO stage.

The only module that imports deepspeed, and only inside functions: the device must be chosen before the import.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dataprep.io.device_settings import configure_device, prepare_environment
from dataprep.io.errors import UserError
from train.config import TrainConfig
from train.deepspeed_config import clips_gradients, deepspeed_config
from train.malloc import keep_freed_memory, return_freed_memory
from train.muon import MuonEma
from train.optimizers import EMA, AdafactorEma, AdamWEma, parameter_groups
from train.replica_engine import ReplicaEngine, prepare_compilation

log = logging.getLogger(__name__)
MASTER = "weight"  # name of the fp32 weight beside the optimizer's slots
# Methods of our models, transformers' and open_clip's that enable recomputation in the backward pass.
RECOMPUTE = ("enable_recompute", "gradient_checkpointing_enable", "set_grad_checkpointing")


def init_process_group(timeout: float = 1800) -> tuple[int, int]:
    """Joins the process group that the environment names, or creates one of this process; returns rank, world size.

    A collective that takes ``timeout`` seconds means a lost or hung rank: gloo raises, NCCL ends the process.
    """
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return dist.get_rank(), dist.get_world_size()


def leave_process_group() -> None:
    """Leaves the process group and makes DeepSpeed forget it, so that this process can join another one.

    Raises nothing if there is none. Every rank calls it; it does not wait for the others.
    """
    if not dist.is_initialized():
        return
    comm: Any = sys.modules.get("deepspeed.comm.comm")
    if comm is not None and comm.cdb is not None:
        comm.destroy_process_group()
        comm.cdb = None
    if dist.is_initialized():
        dist.destroy_process_group()
    return_freed_memory()


def _import_deepspeed() -> Any:
    """Imports deepspeed for the available device, silenced, with its communication on torch's process group."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("LOCAL_RANK", str(dist.get_rank() % max(1, torch.cuda.device_count())))
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # DeepSpeed calls collectives by deprecated names, and torch warns at every step.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    # On CPUs init_distributed would compile a shared-memory operator, which takes over a minute and is never called.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    _import_muon()
    return deepspeed


def _import_muon() -> None:
    """Imports an optimizer that ZeRO looks up at each update, without torch.compile, which would cost a second."""
    from deepspeed.runtime import compiler

    compile_, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compile_


@dataclass(frozen=True)
class OptimizerUpdate:
    """Result of one optimizer update."""

    grad_norm: float  # before clipping; not finite if the update was skipped
    applied: bool


class Engine:
    """A model with its optimizer and EMA on this rank; call it like the model.

    Uses DeepSpeed, except for zero_stage 0 without raw keys: then `ReplicaEngine`. All methods are collective: every
    rank calls them in the same order. ``config`` is the given one resolved (`TrainConfig.resolve`).
    """

    def __init__(self, module: nn.Module, config: TrainConfig) -> None:
        prepare_environment(config.deterministic)
        self.rank, self.world = init_process_group(config.hang_seconds)
        self.module = module
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)) % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
        else:
            keep_freed_memory()
        configure_device(self.device, config.deterministic)
        self.params = {name: param for name, param in module.named_parameters() if param.requires_grad}
        self.shapes = {name: param.shape for name, param in self.params.items()}
        self.parameters = sum(param.numel() for param in self.params.values())
        self.config = config = _resolve(config, self.device, self.parameters)
        if config.activation_checkpointing:
            enable_recompute(module)
        self.mixed = config.precision == "bf16" and config.zero_stage == 0  # the parameters stay fp32
        if self.mixed:
            # Inside the module: DeepSpeed silently disables an autocast around it that is not in its config.
            module.forward = torch.autocast(self.device.type, torch.bfloat16)(module.forward)
        if config.compile:
            prepare_compilation(self.world, config.activation_checkpointing)
            module.compile()
        groups = parameter_groups(module.to(self.device), config.weight_decay)
        self.optimizer = _create_optimizer(groups, config)
        settings = deepspeed_config(config, self.world, self.parameters)
        if config.zero_stage == 0 and not config.deepspeed:
            self.deepspeed: Any = ReplicaEngine(module, self.optimizer, config.accumulation, self.world)
        else:
            self.deepspeed, self.wrapper, *_ = _import_deepspeed().initialize(
                model=module, optimizer=self.optimizer, config=settings, dist_init_required=False
            )
        self._allocate()

    def _allocate(self) -> None:
        """Creates optimizer state before the first update, so that a checkpoint can be loaded into it."""
        masters: list[Tensor]
        if self.config.zero_stage == 0:
            masters = [*self.params.values()]
        elif self.config.zero_stage == 3:
            masters = self.wrapper.fp32_partitioned_groups_flat
        else:
            masters = [param for group in self.optimizer.param_groups for param in group["params"]]
        self.optimizer.allocate(masters)
        self.masters = masters
        if self.config.zero_stage in (1, 2):
            # DeepSpeed does this after its first update; safe_get_full_optimizer_state needs it.
            self.wrapper._lazy_init_hp_params_optimizer_state()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the forward pass. With bf16, float inputs of two or more axes become bf16; outputs become fp32."""
        if self.config.precision == "fp32":
            return self.deepspeed(*args, **kwargs)
        if self.mixed:
            return tree_map(_to_fp32, self.deepspeed(*args, **kwargs))
        args, kwargs = tree_map(_to_bf16, (args, kwargs))
        return tree_map(_to_fp32, self.deepspeed(*args, **kwargs))

    def train(self, mode: bool = True) -> None:
        """Sets training or evaluation mode (dropout)."""
        self.deepspeed.train(mode)

    def seed(self, seed: int) -> None:
        """Seeds torch's global generators of the CPU and of this rank's GPU, faster than `torch.manual_seed`."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a micro-batch's mean loss; averaged over ranks and accumulation."""
        self.deepspeed.backward(loss)

    def step(self, learning_rate: float) -> OptimizerUpdate:
        """Ends a micro-batch; after the last of an update, clips and updates, or skips if the norm is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        last = self.deepspeed.is_gradient_accumulation_boundary()
        if not last:
            self.deepspeed.step()
            return OptimizerUpdate(math.nan, False)
        if not clips_gradients(self.config):
            skipped = self.deepspeed.skipped_steps
            self.deepspeed.step()
            norm = float(self.deepspeed.get_global_grad_norm())
            return OptimizerUpdate(norm, self.deepspeed.skipped_steps == skipped)
        # The one value of an update for which the host waits: a gradient that is not finite must not reach the weights.
        norm = float(self._clip_gradients())
        self.optimizer.skip = not math.isfinite(norm)
        self.deepspeed.step()
        return OptimizerUpdate(norm, not self.optimizer.skip)

    def _clip_gradients(self) -> Tensor:
        """Scales gradients to a global norm of at most `grad_clip`; returns the norm before (scalar, on the device)."""
        limit = self.config.grad_clip
        if self.config.zero_stage == 0:
            return nn.utils.clip_grad_norm_(self.params.values(), limit)
        # What this rank updates, as DeepSpeed's optimizer holds it before its step.
        parts = [part for group in self.wrapper.averaged_gradients.values() for part in group or () if part is not None]
        norms = torch._foreach_norm([part.detach() for part in parts], 2, torch.float32)
        total = torch.stack(norms).square().sum() if norms else torch.zeros((), device=self.device)
        if self.world > 1:
            dist.all_reduce(total)
        norm = total.sqrt()
        torch._foreach_mul_(parts, (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def mean(self, value: Tensor) -> Tensor:
        """Returns the mean of ``value`` over the ranks."""
        if self.world == 1:
            return value.detach()
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def updates(self) -> int:
        """Returns the number of applied updates since the first step, without skipped ones."""
        return max(self.optimizer.updates.get(master, 0) for master in self.masters)

    def slots(self, name: str) -> tuple[str, ...]:
        """Returns the keys of a parameter in `full_state`: ``weight``, then the optimizer's state."""
        return (MASTER, *self.optimizer.slots(self.shapes[name]))

    def full_state(
        self, part: int = 0, parts: int = 1, copy: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yields name, fp32 weight and every optimizer slot, whole, of the parameters i with ``i % parts == part``.

        ``copy`` copies to host memory, and is called for no others.
        """
        for index, (name, param) in enumerate(self.params.items()):
            kept = index % parts == part
            if not kept and self.config.zero_stage == 0:
                continue  # nothing to gather with the other ranks
            values = ((slot, self._gather_slot(param, slot)) for slot in self.slots(name))
            found = {slot: (copy or _to_host)(value) for slot, value in values if kept}
            if kept:
                yield name, found

    def load_parameter(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Sets a parameter and its state from `full_state`, at any world size and ZeRO stage."""
        param = self.params[name]
        for slot in self.slots(name):
            self._write_slot(param, slot, state[slot].to(self.device))
        with self._writable(param):
            param.data.copy_(state[MASTER])

    def set_updates(self, updates: int) -> None:
        """Sets the number that `updates` returns."""
        self.optimizer.set_updates(self.masters, updates)

    def buffers(self) -> dict[str, Tensor]:
        """Returns the model's state besides trained parameters (frozen ones, running statistics) on this rank.

        Where only a part is trained frozen parameters are left out: they are loaded at every start.
        """
        state = self.module.state_dict(keep_vars=True)
        shared = {param.data_ptr() for param in self.params.values()}
        names = [name for name in state if name not in self.params and state[name].data_ptr() not in shared]
        if self.config.trains_part:
            names = [name for name in names if not isinstance(state[name], nn.Parameter)]
        return {name: state[name].detach().cpu().clone() for name in names}

    def load_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Sets the state that `buffers` returned."""
        state = self.module.state_dict()
        for name, value in buffers.items():
            state[name].copy_(value)

    def weights(self, slot: str = EMA) -> dict[str, Tensor]:
        """Returns a state dict on the CPU, with the EMA (or another slot) in place of the trained parameters."""
        return {name: _to_host(self._gather_slot(param, slot)) for name, param in self.params.items()} | self.buffers()

    def _writable(self, param: nn.Parameter) -> Any:
        if self.config.zero_stage != 3:
            return nullcontext()
        return _import_deepspeed().zero.GatheredParameters([param], modifier_rank=0)

    def _gather_slot(self, param: nn.Parameter, slot: str) -> Tensor:
        """Returns a slot of a parameter, whole, where it lies or where DeepSpeed gathers it."""
        if self.config.zero_stage == 0:
            value: Tensor = param if slot == MASTER else self.optimizer.state[param][slot]
            return value
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        value = safe_get_full_fp32_param(param) if slot == MASTER else safe_get_full_optimizer_state(param, slot)
        return value

    def _write_slot(self, param: nn.Parameter, slot: str, value: Tensor) -> None:
        if self.config.zero_stage == 0:
            (param.data if slot == MASTER else self.optimizer.state[param][slot]).copy_(value)
            return
        if self.config.zero_stage == 3:
            # DeepSpeed's own setter fails for a parameter that does not divide evenly among the ranks.
            sharded = param._z3_optimizer  # type: ignore[attr-defined]
            key = None if slot == MASTER else slot
            share, _ = sharded._get_fp32_opt_state_partition(param, release_swap_buffers=False, optim_state_key=key)
            start, size = sharded._get_param_partition_rank(param) * share.numel(), share.numel()
            own = value.flatten()[start : start + size]
            share.data[: own.numel()].copy_(own)
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if slot == MASTER:
            safe_set_full_fp32_param(param, value)
        else:
            safe_set_full_optimizer_state(param, value, slot)


def _create_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> AdamWEma | AdafactorEma | MuonEma:
    if config.optimizer == "adafactor":
        return AdafactorEma(groups, config.learning_rate, config.ema_decay)
    betas = (config.beta1, config.beta2)
    if config.optimizer == "muon":
        return MuonEma(groups, config.learning_rate, config.ema_decay, betas=betas)
    return AdamWEma(groups, config.learning_rate, config.ema_decay, betas=betas)


def _resolve(config: TrainConfig, device: torch.device, parameters: int) -> TrainConfig:
    """Returns the config for this device and model; UserError if it asks for a compiler, and there is none.

    torch.compile builds C++ for a CPU, and a launcher in C for a GPU.
    """
    resolved = config.resolve(device.type == "cuda", parameters)
    named = [os.environ[name] for name in ("CXX", "CC") if name in os.environ]
    if not resolved.compile or any(shutil.which(name) for name in (*named, "g++", "clang++", "gcc", "clang")):
        return resolved
    if config.compile == "auto":
        log.warning("the model is not compiled, and so slower: PATH has no C++ compiler; install g++")
        return resolved.model_copy(update={"compile": False})
    raise UserError("compile=true needs a C++ compiler, and PATH has none; install g++, or set compile=false")


def enable_recompute(module: nn.Module) -> None:
    """Makes a model keep only its blocks' inputs for the backward pass; UserError if it has no method for that."""
    for name in RECOMPUTE:
        if hasattr(module, name):
            getattr(module, name)()
            return
    raise UserError("activation_checkpointing=true: this model cannot recompute blocks; set it to false")


def _to_host(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float32, copy=True)


def _to_bf16(value: Any) -> Any:
    """Casts data to bf16, except vectors: noise levels and the like need more precision."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2:
        return value.to(torch.bfloat16)
    return value


def _to_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
