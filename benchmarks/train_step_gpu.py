"""A training step of the presets on one GPU in bf16: milliseconds, MFU and peak memory.

``python -m benchmarks.train_step_gpu [preset ...]``; without names, the four of the paper. The step is the trainer's
own: forward, backward, clipping, fused AdamW and the average in DeepSpeed's engine, ZeRO 2 on one rank, batches in
memory, each preset with torch.compile and without. MFU is three times the operations of the forward pass (attention
counted, a multiplication and an addition are two, what is recomputed not counted) over time and the GPU's dense bf16
peak. The best auditable anchor, MLPerf's Stable Diffusion v2 U-Net on H200, reaches 26 to 31%. Where a batch does not
fit, half of it is tried. No result is kept in the repository yet: this was written where there is no GPU.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.apart import apart
from benchmarks.result import claim, write
from train.config import TrainConfig
from train.engine import Engine
from train.models.presets import unet_config
from train.models.unet import UNet, UNetConfig
from train.timing import peak_memory_mb, peak_tflops

# Batch and side of the pictures; super-resolution to 1024 trains on crops of 256 (F.3).
CASES = {
    "imagen-base-300m": (128, 64),
    "imagen-base-2b": (32, 64),
    "imagen-sr256-600m": (32, 256),
    "imagen-sr1024-400m": (32, 256),
}
TOKENS, WARM, STEPS, TARGET = 64, 5, 20, 0.35


def inputs(config: UNetConfig, batch: int, size: int, device: torch.device) -> dict[str, Tensor]:
    """Arguments of a forward pass; every caption has all its tokens."""
    given = {
        "x_BCHW": torch.randn(batch, config.image_channels, size, size, device=device),
        "log_snr_B": torch.randn(batch, device=device),
        "text_BLD": torch.randn(batch, TOKENS, config.text_dim, device=device),
        "text_mask_BL": torch.ones(batch, TOKENS, dtype=torch.bool, device=device),
        "text_keep_B": torch.rand(batch, device=device) >= 0.1,
    }
    if config.lowres:
        given |= {
            "lowres_BCHW": torch.randn_like(given["x_BCHW"]),
            "lowres_log_snr_B": torch.randn_like(given["log_snr_B"]),
        }
    return given


def measure(preset: str, batch: int, size: int, settings: dict[str, Any]) -> dict[str, Any] | None:
    """One row; None where the memory is too small for the batch. ``settings`` are keys of TrainConfig."""
    config = unet_config(preset)
    torch.manual_seed(0)
    try:
        engine = Engine(UNet(config), TrainConfig(batch_size=batch, **settings))
        given = inputs(config, batch, size, engine.device)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            engine(**given)
        seconds = []
        for _ in range(WARM + STEPS):
            start = time.perf_counter()
            engine.backward((engine(**given) - given["x_BCHW"]).square().mean())
            engine.step(1e-5)
            if engine.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return None
    step, peak = statistics.median(seconds[WARM:]), peak_tflops(engine.device, None)
    row = {"preset": preset, "parameters": engine.parameters, "batch": batch, "size": size, **settings}
    row |= {"ms": round(1000 * step, 2), "images_a_second": round(batch / step, 1)}
    row |= {"tflop": round(3 * counter.get_total_flops() / 1e12, 3), "peak_mb": peak_memory_mb(engine.device)}
    return row | {"mfu": round(row["tflop"] / step / peak, 4) if peak else None}


def gpu_name() -> str | None:
    """Asked in a process of its own: one that has touched CUDA cannot be forked."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def main() -> None:
    """Measures the presets that are named, or all of them."""
    presets = sys.argv[1:] or list(CASES)
    unknown = [preset for preset in presets if preset not in CASES]
    if unknown:
        raise SystemExit(f"no case for {', '.join(unknown)}; take some of {', '.join(CASES)}")
    name = apart(gpu_name)
    if name is None:
        raise SystemExit("this benchmark needs a CUDA GPU, and torch finds none; benchmarks.train_step is the CPU's")
    rows = []
    for preset in presets:
        for compiled in (False, True):
            batch, size = CASES[preset]
            settings = {"precision": "bf16", "zero_stage": 2, "compile": compiled}
            while (row := apart(measure, preset, batch, size, settings)) is None and batch > 1:
                batch //= 2
            if row is None:
                raise SystemExit(f"{preset}: not even one picture fits into {name}'s memory")
            print(row, flush=True)
            rows.append(row | {"gpu": name})
    best = max((row["mfu"] or 0.0 for row in rows if row["preset"].startswith("imagen-base")), default=0.0)
    write("train_step_gpu", rows, [claim("MFU of the base at bf16", best, "share", TARGET)], ("torch", "deepspeed"))


if __name__ == "__main__":
    main()
