"""Config of the training loop of any task, and the paper's settings as presets. Light: loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dataprep.io.config import Config
from train.init_config import Init
from train.lr_schedule import LrScheduleName
from train.models.adapters.config import AdapterConfig

SHARD_FROM = 1_000_000_000  # parameters from which `zero_stage` auto shards: below, a rank's states take 20 GB at most
COMPILE_FROM = 2000  # updates from which `compile` auto compiles: it takes minutes, and saves a share of each update

# Optimizers that ZeRO's flat shards do not serve: what they need whole matrices for.
WHOLE_MATRICES = {"adafactor": "keeps a row and a column of each matrix", "muon": "makes updates of whole matrices"}

# Appendix F of arXiv 2205.11487: the base trains with Adafactor, the super-resolution models with Adam. One thing is
# not the paper's: F.1 takes optax.adafactor with its defaults, which multiply each update by the root mean square of
# its parameter. Our learning rate is absolute, so its 1e-4 makes updates some 50 times larger than there; try a rate
# on imagen-base-300m before a long training (docs/training.md).
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
_PAPER_SR = _PAPER | {"optimizer": "adamw", "beta1": 0.9, "beta2": 0.999}
PRESETS: dict[str, dict[str, Any]] = {
    "imagen-base": _PAPER | {"optimizer": "adafactor"},
    "imagen-sr256": _PAPER_SR,
    "imagen-sr1024": _PAPER_SR,
}

# Keys that may differ between a checkpoint and the run that resumes it: how long, where and how it computes, not what.
# Of `steps` and `decay_steps` together `TrainConfig.decay_length` counts.
RESUMABLE = {
    *("preset", "steps", "decay_steps", "accumulation", "zero_stage", "offload", "deepspeed", "compile"),
    *("activation_checkpointing", "deterministic"),
    *("checkpoint_every", "keep_last", "keep_every", "overlap_save", "log_every", "validate_every"),
    *("validation_batches", "sample_every", "max_skipped", "workers", "stall_seconds", "hang_seconds"),
    *("wandb", "wandb_project", "mlflow", "mlflow_experiment", "peak_tflops"),
}
# Where files are whose bytes the fingerprint of a stage covers: they may be elsewhere when its training goes on.
PLACES = {"init.source", "distillation.teacher", "perceptual.weights", "perceptual.lpips"}


class TrainConfig(Config):
    """The training loop of any task: how long, how fast, with how much memory, and what is kept."""

    resumable: ClassVar[frozenset[str]] = frozenset(RESUMABLE)  # a task for which one of them matters takes it out

    brings_weights: ClassVar[bool] = False  # whether a task has the weights that an adapter is trained beside

    preset: str | None = Field(
        None, description="settings of a stage in the paper, for which docs/training.md has one caveat"
    )
    init: Init | None = Field(None, description="weights to begin from; None: random ones")
    adapter: AdapterConfig | None = Field(
        None, description="train small matrices beside the weights of `init`, which stay as they are; None: all weights"
    )
    steps: int = Field(1000, ge=1, description="optimizer updates")
    batch_size: int = Field(32, ge=1, description="samples per update, over all ranks and accumulation")
    accumulation: int = Field(1, ge=1, description="micro-batches per update on each rank")
    optimizer: Literal["adamw", "adafactor", "muon"] = Field(
        "adamw", description="adafactor: little state; muon: orthogonal updates of matrices; both: zero_stage 0 only"
    )
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    warmup_steps: int = Field(100, ge=0, description="updates of linear warm-up")
    schedule: LrScheduleName = Field("cosine", description="learning rate after the warm-up")
    decay_steps: int | None = Field(None, ge=1, description="update at which the cosine ends; None: `steps`")
    final_lr_share: float = Field(0.05, ge=0, le=1, description="end of the cosine, as a share of the peak")
    weight_decay: float = Field(0.01, ge=0, description="decay of matrices and kernels, in units of the learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the first moment")
    beta2: float = Field(0.99, ge=0, lt=1, description="AdamW: decay of the second moment")
    grad_clip: float = Field(1.0, gt=0, description="largest global gradient norm; larger gradients are scaled down")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="decay of the EMA of the weights, after its warm-up")
    zero_stage: Literal["auto", 0, 1, 2, 3] = Field(
        "auto",
        description="what DeepSpeed ZeRO shards: 0 nothing ... 3 parameters too; auto: 0 below a billion parameters, "
        "else 2, and what offload and optimizer require",
    )
    offload: Literal["none", "optimizer", "all"] = Field("none", description="what is kept in CPU memory")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="arithmetic; master weights and EMA stay fp32; auto: bf16 on GPUs, fp32 on CPUs"
    )
    activation_checkpointing: bool = Field(False, description="recompute blocks in the backward pass to save memory")
    deterministic: bool = Field(
        False, description="on GPUs: the same result each time, but slower; CPUs give it anyway"
    )
    compile: Literal["auto", True, False] = Field(
        "auto", description="torch.compile the model; auto: on GPUs, for 2000 steps or more"
    )
    deepspeed: dict[str, Any] = Field(default_factory=dict, description="raw DeepSpeed keys, merged over ours")
    checkpoint_every: int = Field(500, ge=1, description="updates between checkpoints; one is written at the end too")
    keep_last: int = Field(2, ge=1, description="number of newest checkpoints to keep")
    keep_every: int = Field(0, ge=0, description="keep checkpoints of every n-th update forever; 0: none")
    overlap_save: int = Field(100, ge=0, description="updates that may run while a checkpoint is written; 0: none")
    log_every: int = Field(20, ge=1, description="updates per row of log.jsonl")
    validate_every: int = Field(0, ge=0, description="updates between validations; 0: at the end only")
    validation_batches: int = Field(8, ge=1, description="batches per validation")
    sample_every: int = Field(0, ge=0, description="updates between grids of samples of the EMA weights; 0: none")
    max_skipped: int = Field(10, ge=1, description="consecutive updates with a non-finite gradient that stop the run")
    workers: int | None = Field(
        None, ge=0, description="threads that prefetch batches; None: 1, on GPUs all CPUs of the rank but one; 0: none"
    )
    stall_seconds: float = Field(600, gt=0, description="timeout of a batch, which stops the run")
    hang_seconds: float = Field(1800, gt=0, description="timeout of an update or a save, which ends the process")
    peak_tflops: float | None = Field(None, gt=0, description="dense peak of the GPU, for MFU; None: by its name")
    wandb: Literal["off", "offline", "online"] = Field("off", description="Weights & Biases beside TensorBoard")
    wandb_project: str = Field("imagen-ray", description="Weights & Biases project")
    mlflow: str | None = Field(
        None, description="MLflow beside TensorBoard: the tracking server, such as http://mlflow:5000; None: off"
    )
    mlflow_experiment: str = Field("imagen-ray", description="MLflow experiment")

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
        if self.decay_steps is not None and self.schedule != "cosine":
            raise ValueError(f"decay_steps={self.decay_steps} is the length of a cosine; set schedule=cosine")
        if self.adapter is not None and self.init is None and not self.brings_weights:
            raise ValueError("adapter is trained beside weights that exist; name them as init")
        if self.offload != "none" and self.zero_stage == 0:
            raise ValueError(f"offload={self.offload} requires ZeRO; set zero_stage to 1 or more")
        if self.offload == "all" and self.zero_stage not in ("auto", 3):
            raise ValueError(
                f"offload=all moves parameters, which zero_stage={self.zero_stage} does not shard; set zero_stage to 3"
            )
        if self.optimizer != "adamw" and self.zero_stage not in ("auto", 0):
            raise ValueError(
                f"optimizer={self.optimizer} {WHOLE_MATRICES[self.optimizer]}, which zero_stage={self.zero_stage} "
                "flattens and splits; set zero_stage=0, or optimizer=adamw"
            )
        if self.optimizer != "adamw" and self.offload != "none":
            raise ValueError(
                f"optimizer={self.optimizer} runs without ZeRO, which offload={self.offload} requires; set "
                "offload=none, or optimizer=adamw"
            )
        if self.compile is True and self.resolve_stage(0) == 3:
            raise ValueError(
                "compile=true cannot trace how zero_stage=3 gathers parameters; set zero_stage to 2 or less"
            )
        return self

    @property
    def trains_part(self) -> bool:
        """Whether only a part is trained, beside weights that are read at every start and are in no checkpoint."""
        return self.adapter is not None

    def resolve_stage(self, parameters: int) -> Literal[0, 1, 2, 3]:
        """Returns the ZeRO stage for a model of so many parameters."""
        if self.zero_stage != "auto":
            return self.zero_stage
        if self.offload == "all":
            return 3
        if self.optimizer != "adamw":
            return 0
        return 2 if self.offload == "optimizer" or parameters >= SHARD_FROM else 0

    def resolve_precision(self, on_gpu: bool) -> Literal["fp32", "bf16"]:
        """Returns the arithmetic on a GPU or a CPU."""
        return self.precision if self.precision != "auto" else "bf16" if on_gpu else "fp32"

    def resolve(self, on_gpu: bool, parameters: int) -> Self:
        """Returns the config with a value in place of each ``auto``, for the device and the size of the model."""
        stage, compiled = self.resolve_stage(parameters), self.compile
        if compiled == "auto":
            compiled = on_gpu and stage != 3 and self.steps >= COMPILE_FROM
        return self.model_copy(
            update={"zero_stage": stage, "precision": self.resolve_precision(on_gpu), "compile": compiled}
        )

    def decay_length(self) -> int | None:
        """Returns the update at which the learning rate has decayed; None if it does not."""
        return (self.decay_steps or self.steps) if self.schedule == "cosine" else None


def run_identity(config: TrainConfig) -> dict[str, Any]:
    """Returns the settings that determine each update, flat; a checkpoint resumes only a run with the same.

    Of a config with ``precision`` auto, those of any device: the training loop asks for those of `TrainConfig.resolve`.
    ``decay_steps`` among them is `TrainConfig.decay_length`: a cosine over all `steps` depends on `steps`.
    """

    def flatten(value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {path: value}
        return {k: v for key, inner in value.items() for k, v in flatten(inner, f"{path}.{key}".lstrip(".")).items()}

    kept = {name: value for name, value in config.model_dump(mode="json").items() if name not in config.resumable}
    return flatten(kept, "") | {"decay_steps": config.decay_length()}
