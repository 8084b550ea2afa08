"""How a model is trained on any number of ranks: our config, its mapping to DeepSpeed's, and the engine around it.

The only module that imports deepspeed, and only inside functions: the device must be chosen before that import.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dataprep.schema import Config, UserError
from train.optim import STATE_SLOTS, AdamWEma, ScheduleKind, parameter_groups

MASTER = "weight"  # beside STATE_SLOTS, the name of the fp32 weight itself


class TrainConfig(Config):
    """The training loop of any task: how long, how fast, on how much memory, and what is kept."""

    steps: int = Field(1000, ge=1, description="optimizer updates")
    batch_size: int = Field(32, ge=1, description="samples an update, over all ranks and accumulation")
    accumulation: int = Field(1, ge=1, description="micro-batches an update on each rank")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    warmup_steps: int = Field(100, ge=0, description="updates of linear warm-up")
    schedule: ScheduleKind = Field("cosine", description="learning rate after the warm-up")
    final_lr_share: float = Field(0.05, ge=0, le=1, description="where the cosine ends, as a share of the peak")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decay of matrices and kernels")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the first moment")
    beta2: float = Field(0.99, ge=0, lt=1, description="AdamW: decay of the second moment")
    grad_clip: float = Field(1.0, gt=0, description="global gradient norm above which gradients are scaled down")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="decay of the weights' moving average, after its warm-up")
    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="what DeepSpeed ZeRO shards: 0 nothing ... 3 parameters too")
    offload: Literal["none", "optimizer", "all"] = Field("none", description="what is kept in CPU memory")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic; masters and averages stay fp32")
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="raw DeepSpeed keys, merged over ours")
    checkpoint_every: int = Field(500, ge=1, description="updates between checkpoints; one is written at the end too")
    keep_last: int = Field(2, ge=1, description="checkpoints kept")
    log_every: int = Field(20, ge=1, description="updates a row of log.jsonl")
    validate_every: int = Field(0, ge=0, description="updates between validations; 0: at the end only")
    validation_batches: int = Field(8, ge=1, description="batches of a validation")
    max_skipped: int = Field(10, ge=1, description="updates in a row with a non-finite gradient that stop the run")
    workers: int = Field(1, ge=0, description="threads that prepare batches ahead; 0: none")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of accumulation={self.accumulation}; change one"
            )
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("precision=bf16 keeps its fp32 masters in ZeRO; set zero_stage to 1 or more")
        if self.offload != "none" and self.zero_stage == 0:
            raise ValueError(f"offload={self.offload} is a part of ZeRO; set zero_stage to 1 or more")
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(f"offload=all moves parameters, which zero_stage={self.zero_stage} does not shard; set 3")
        return self


def ds_config(config: TrainConfig, world: int, parameters: int) -> dict[str, Any]:
    """DeepSpeed's config for ours; ``parameters`` bounds the buffers. Raises UserError for an impossible batch."""
    parts = world * config.accumulation
    if config.batch_size % parts:
        raise UserError(
            f"batch_size={config.batch_size}: not divisible by {world} ranks x accumulation {config.accumulation}; "
            f"take a multiple of {parts}"
        )
    bucket = min(-(-parameters // 4096) * 4096, 500_000_000)  # DeepSpeed wants it even
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage:
        # DeepSpeed allocates its buckets at their full size, 2 GB by default, whatever the model's.
        zero |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
        # One contiguous gradient buffer prevents fragmentation; for a small model it is only an extra copy.
        zero |= {"contiguous_gradients": parameters > 50_000_000}
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    mapped: dict[str, Any] = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.batch_size // parts,
        "gradient_accumulation_steps": config.accumulation,
        # Without ZeRO the engine below clips, since DeepSpeed keeps that norm to itself.
        "gradient_clipping": config.grad_clip if config.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if config.precision == "bf16":
        mapped["bf16"] = {"enabled": True}
    return _merge(mapped, config.deepspeed)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged


def init_process_group() -> tuple[int, int]:
    """Rank and world size; joins the group that the environment names, or makes one of this process alone."""
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return dist.get_rank(), dist.get_world_size()


def _deepspeed() -> Any:
    """The deepspeed module, imported for the device at hand, quiet, with its communication on torch's group."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("LOCAL_RANK", str(dist.get_rank() % max(1, torch.cuda.device_count())))
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # On CPUs init_distributed would compile a shared-memory operator, over a minute, that training never calls.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed


@dataclass(frozen=True)
class Update:
    """What one optimizer update did."""

    grad_norm: float  # before clipping; not finite where the update was skipped
    applied: bool


class Engine:
    """A model with its optimizer and average on this rank; call it like the model.

    All methods are collective: every rank calls them in the same order.
    """

    def __init__(self, module: nn.Module, config: TrainConfig) -> None:
        self.rank, self.world = init_process_group()
        self.config, self.module = config, module
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)) % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
        self.params = {name: param for name, param in module.named_parameters() if param.requires_grad}
        self.parameters = sum(param.numel() for param in self.params.values())
        groups = parameter_groups(module.to(self.device), config.weight_decay)
        betas = (config.beta1, config.beta2)
        self.optimizer = AdamWEma(groups, config.learning_rate, config.ema_decay, betas=betas)
        deepspeed = _deepspeed()
        settings = ds_config(config, self.world, self.parameters)
        self.deepspeed, self.wrapper, *_ = deepspeed.initialize(
            model=module, optimizer=self.optimizer, config=settings, dist_init_required=False
        )
        self._allocate()

    def _allocate(self) -> None:
        """Optimizer state before the first update, so that a checkpoint can be read into it."""
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
            # What DeepSpeed does after its first update: lets safe_get_full_optimizer_state find the state.
            self.wrapper._lazy_init_hp_params_optimizer_state()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward. With bf16, float inputs of two or more axes go in as bf16; results come out as fp32."""
        if self.config.precision == "fp32":
            return self.deepspeed(*args, **kwargs)
        args, kwargs = tree_map(_to_bf16, (args, kwargs))
        return tree_map(_to_fp32, self.deepspeed(*args, **kwargs))

    def train(self, mode: bool = True) -> None:
        """Training or evaluation mode (dropout)."""
        self.deepspeed.train(mode)

    def backward(self, loss: Tensor) -> None:
        """Gradients of one micro-batch's mean loss; averaged over ranks and accumulation."""
        self.deepspeed.backward(loss)

    def step(self, learning_rate: float) -> Update:
        """Ends a micro-batch; at the last of an update, clips and updates, or skips where the norm is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        last = self.deepspeed.is_gradient_accumulation_boundary()
        if not last:
            self.deepspeed.step()
            return Update(math.nan, False)
        if self.config.zero_stage == 0:
            norm = float(nn.utils.clip_grad_norm_(self.params.values(), self.config.grad_clip))
            self.optimizer.skip = not math.isfinite(norm)
            self.deepspeed.step()
            return Update(norm, not self.optimizer.skip)
        skipped = self.deepspeed.skipped_steps
        self.deepspeed.step()
        return Update(float(self.deepspeed.get_global_grad_norm()), self.deepspeed.skipped_steps == skipped)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of ``value`` over the ranks."""
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def updates(self) -> int:
        """Updates applied since the first step, skipped ones left out."""
        return int(max(self.optimizer.state[master]["step"].item() for master in self.masters))

    def full_state(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Parameter by parameter: its name, and on the CPU its fp32 weight and every optimizer slot, whole."""
        for name, param in self.params.items():
            yield name, {slot: self._get(param, slot) for slot in (MASTER, *STATE_SLOTS)}

    def load_full_state(self, state: Mapping[str, Mapping[str, Tensor]], updates: int) -> None:
        """Sets what `full_state` gave, at any world size and ZeRO stage. UserError where the parameters differ."""
        differ = sorted(set(state) ^ set(self.params))
        differ += [n for n, p in self.params.items() if n in state and state[n][MASTER].shape != _shape(p)]
        if differ:
            raise UserError(f"checkpoint: of another model (parameter {differ[0]}); train into an empty folder")
        for name, param in self.params.items():
            for slot, value in state[name].items():
                self._set(param, slot, value.to(self.device))
            with self._writable(param):
                param.data.copy_(state[name][MASTER])
        for master in self.masters:
            self.optimizer.state[master]["step"].fill_(float(updates))

    def buffers(self) -> dict[str, Tensor]:
        """What a model keeps besides trained parameters (frozen ones, running statistics), as it is on this rank."""
        state = self.module.state_dict()
        shared = {param.data_ptr() for param in self.params.values()}
        names = [name for name in state if name not in self.params and state[name].data_ptr() not in shared]
        return {name: state[name].detach().cpu().clone() for name in names}

    def load_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Sets what `buffers` gave."""
        state = self.module.state_dict()
        for name, value in buffers.items():
            state[name].copy_(value)

    def weights(self, slot: str = "ema") -> dict[str, Tensor]:
        """A state dict on the CPU, with the averages (or another slot) in the place of the trained parameters."""
        return {name: self._get(param, slot) for name, param in self.params.items()} | self.buffers()

    def _writable(self, param: nn.Parameter) -> Any:
        if self.config.zero_stage != 3:
            return nullcontext()
        return _deepspeed().zero.GatheredParameters([param], modifier_rank=0)

    def _get(self, param: nn.Parameter, slot: str) -> Tensor:
        if self.config.zero_stage == 0:
            value = param if slot == MASTER else self.optimizer.state[param][slot]
        else:
            from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

            value = safe_get_full_fp32_param(param) if slot == MASTER else safe_get_full_optimizer_state(param, slot)
        return value.detach().to("cpu", torch.float32, copy=True)

    def _set(self, param: nn.Parameter, slot: str, value: Tensor) -> None:
        if self.config.zero_stage == 0:
            (param.data if slot == MASTER else self.optimizer.state[param][slot]).copy_(value)
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if slot == MASTER:
            safe_set_full_fp32_param(param, value)
        else:
            safe_set_full_optimizer_state(param, value, slot)


def _shape(param: nn.Parameter) -> torch.Size:
    """The whole parameter's shape: under ZeRO-3 the parameter itself may be an empty stand-in."""
    return getattr(param, "ds_shape", param.shape)


def _to_bf16(value: Any) -> Any:
    """Data goes to the network's precision; vectors, such as noise levels, are too fine-grained for bf16."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2:
        return value.to(torch.bfloat16)
    return value


def _to_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
