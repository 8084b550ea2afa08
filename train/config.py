"""The config of the training loop of any task, the paper's settings as presets, and the mapping to DeepSpeed's config.

Pure: nothing here imports deepspeed or touches a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dataprep.schema import Config, UserError
from train.schedule import ScheduleKind

# Appendix F of arXiv 2205.11487: the base trains with Adafactor, the super-resolution models with Adam.
_PAPER: dict[str, Any] = {
    "steps": 2_500_000,
    "batch_size": 2048,
    "learning_rate": 1e-4,
    "warmup_steps": 10_000,
    "schedule": "cosine",
    "final_lr_share": 0.0,
    "weight_decay": 0.0,
    "ema_decay": 0.9999,
    "precision": "bf16",
}
_PAPER_SR = _PAPER | {"optimizer": "adamw", "beta1": 0.9, "beta2": 0.999, "zero_stage": 2}
PRESETS: dict[str, dict[str, Any]] = {
    "imagen-base": _PAPER | {"optimizer": "adafactor", "zero_stage": 0},
    "imagen-sr256": _PAPER_SR,
    "imagen-sr1024": _PAPER_SR,
}

# What may differ between a checkpoint and the run that resumes it: where and how it computes, not what.
RESUMABLE = {
    *("preset", "steps", "accumulation", "zero_stage", "offload", "deepspeed", "compile", "activation_checkpointing"),
    *("checkpoint_every", "keep_last", "keep_every", "overlap_save", "log_every", "validate_every"),
    *("validation_batches", "sample_every", "max_skipped", "workers", "stall_seconds", "hang_seconds"),
    *("wandb", "wandb_project", "peak_tflops"),
}


class TrainConfig(Config):
    """The training loop of any task: how long, how fast, on how much memory, and what is kept."""

    preset: str | None = Field(None, description="the paper's settings of a stage, which other keys then replace")
    steps: int = Field(1000, ge=1, description="optimizer updates")
    batch_size: int = Field(32, ge=1, description="samples an update, over all ranks and accumulation")
    accumulation: int = Field(1, ge=1, description="micro-batches an update on each rank")
    optimizer: Literal["adamw", "adafactor"] = Field("adamw", description="adafactor: little state, zero_stage 0 only")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    warmup_steps: int = Field(100, ge=0, description="updates of linear warm-up")
    schedule: ScheduleKind = Field("cosine", description="learning rate after the warm-up")
    final_lr_share: float = Field(0.05, ge=0, le=1, description="where the cosine ends, as a share of the peak")
    weight_decay: float = Field(0.01, ge=0, description="decay of matrices and kernels, in units of the learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the first moment")
    beta2: float = Field(0.99, ge=0, lt=1, description="AdamW: decay of the second moment")
    grad_clip: float = Field(1.0, gt=0, description="global gradient norm above which gradients are scaled down")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="decay of the weights' moving average, after its warm-up")
    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="what DeepSpeed ZeRO shards: 0 nothing ... 3 parameters too")
    offload: Literal["none", "optimizer", "all"] = Field("none", description="what is kept in CPU memory")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic; masters and averages stay fp32")
    activation_checkpointing: bool = Field(False, description="recompute blocks in the backward pass to save memory")
    compile: bool = Field(False, description="torch.compile the model; pays on GPUs and long runs")
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="raw DeepSpeed keys, merged over ours")
    checkpoint_every: int = Field(500, ge=1, description="updates between checkpoints; one is written at the end too")
    keep_last: int = Field(2, ge=1, description="newest checkpoints kept")
    keep_every: int = Field(0, ge=0, description="checkpoints of every so many updates are kept for good; 0: none")
    overlap_save: int = Field(100, ge=0, description="updates that may run beside an unfinished checkpoint; 0: none")
    log_every: int = Field(20, ge=1, description="updates a row of log.jsonl")
    validate_every: int = Field(0, ge=0, description="updates between validations; 0: at the end only")
    validation_batches: int = Field(8, ge=1, description="batches of a validation")
    sample_every: int = Field(0, ge=0, description="updates between grids of samples of the average; 0: none")
    max_skipped: int = Field(10, ge=1, description="updates in a row with a non-finite gradient that stop the run")
    workers: int = Field(1, ge=0, description="threads that prepare batches ahead; 0: none")
    stall_seconds: float = Field(600, gt=0, description="a batch that takes longer stops the run")
    hang_seconds: float = Field(1800, gt=0, description="an update or a save that takes longer ends the process")
    peak_tflops: float | None = Field(None, gt=0, description="a GPU's dense peak, for MFU; None: by its name")
    wandb: Literal["off", "offline", "online"] = Field("off", description="Weights & Biases beside TensorBoard")
    wandb_project: str = Field("imagen-ray", description="Weights & Biases project")

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, given: Any) -> Any:
        name = given.get("preset") if isinstance(given, Mapping) else None
        if name is None:
            return given
        if name not in PRESETS:
            raise ValueError(f"preset={name!r} is unknown; take one of {', '.join(PRESETS)}")
        return PRESETS[name] | dict(given)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of accumulation={self.accumulation}; change one"
            )
        if self.offload != "none" and self.zero_stage == 0:
            raise ValueError(f"offload={self.offload} is a part of ZeRO; set zero_stage to 1 or more")
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(f"offload=all moves parameters, which zero_stage={self.zero_stage} does not shard; set 3")
        if self.optimizer == "adafactor" and self.zero_stage:
            raise ValueError(
                f"optimizer=adafactor keeps a row and a column of each matrix, which zero_stage={self.zero_stage} "
                "cuts into flat pieces; set zero_stage=0, or optimizer=adamw"
            )
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile=true cannot see through zero_stage=3's gathering of parameters; set 2 or less")
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
        # Without ZeRO the engine clips, since DeepSpeed keeps that norm to itself.
        "gradient_clipping": config.grad_clip if config.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if config.precision == "bf16" and config.zero_stage:  # without ZeRO: autocast, with fp32 parameters
        mapped["bf16"] = {"enabled": True}
    return _merge(mapped, config.deepspeed)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged


def identity(config: TrainConfig) -> dict[str, Any]:
    """The settings that make a run what it is, flat: a checkpoint resumes only a run that has the same."""

    def flatten(value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {path: value}
        return {k: v for key, inner in value.items() for k, v in flatten(inner, f"{path}.{key}".lstrip(".")).items()}

    kept = {name: value for name, value in config.model_dump(mode="json").items() if name not in RESUMABLE}
    return flatten(kept, "")
