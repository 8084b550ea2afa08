"""DeepSpeed's config for ours, and the thresholds of ZeRO that shape memory use. Pure: imports no deepspeed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataprep.io.errors import UserError
from train.config import TrainConfig

MAX_BUCKET = 500_000_000  # largest gradient bucket, in elements; smaller for smaller models
CONTIGUOUS_ABOVE = 50_000_000  # parameters above which gradients get one contiguous buffer
# DeepSpeed's defaults, for the planner.
PERSISTENT_UP_TO = 100_000  # elements up to which ZeRO 3 leaves a parameter whole (stage3_param_persistence_threshold)
MAX_LIVE = 1_000_000_000  # largest number of parameters that ZeRO 3 keeps gathered (stage3_max_live_parameters)


def deepspeed_config(config: TrainConfig, world: int, parameters: int) -> dict[str, Any]:
    """Maps our config (`TrainConfig.resolve`) to DeepSpeed's; ``parameters`` bounds the buffers.

    Raises UserError for an indivisible batch.
    """
    parts = world * config.accumulation
    if config.batch_size % parts:
        raise UserError(
            f"batch_size={config.batch_size}: not divisible by {world} ranks x accumulation {config.accumulation}; "
            f"take a multiple of {parts}"
        )
    bucket = min(-(-parameters // 4096) * 4096, MAX_BUCKET)  # DeepSpeed requires an even number
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage:
        # DeepSpeed allocates buckets at full size, 2 GB by default, for models of any size.
        zero |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
        # A contiguous gradient buffer prevents fragmentation; for a small model it is only an extra copy.
        # ZeRO 3 reduces while the backward pass goes on anyway.
        zero |= {"contiguous_gradients": parameters > CONTIGUOUS_ABOVE, "overlap_comm": True}
    own_norm = clips_gradients(config)
    if own_norm and config.zero_stage:
        zero["compute_grad_norm"] = False
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    mapped: dict[str, Any] = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.batch_size // parts,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": 0.0 if own_norm else config.grad_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if config.precision == "bf16" and config.zero_stage:  # without ZeRO: autocast, with fp32 parameters
        mapped["bf16"] = {"enabled": True, "check_grad_overflow": not own_norm}
        if config.zero_stage == 2 and config.accumulation > 1 and config.offload == "none":
            # Sums of micro-batches lose small gradients in bf16. Under ZeRO 1 DeepSpeed changes to another optimizer.
            mapped["data_types"] = {"grad_accum_dtype": "fp32"}
    return _merge_keys(mapped, config.deepspeed)


def clips_gradients(config: TrainConfig) -> bool:
    """Returns whether our engine computes the gradient norm and clips, not DeepSpeed.

    DeepSpeed does not report the norm without ZeRO, and waits for the device three times for it under ZeRO 1 and 2;
    ours waits once. Offloaded gradients and those of ZeRO 3 are out of our reach.
    """
    return config.zero_stage in (0, 1, 2) and config.offload == "none"


def _merge_keys(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merge_keys(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged
