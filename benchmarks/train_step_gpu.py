"""A training step of the presets on one GPU in bf16: milliseconds, MFU and peak memory.

    python -m benchmarks.train_step_gpu [PRESET ...]

Without arguments, the four presets of the paper. The step is the trainer's: forward, backward, clipping, fused AdamW
and EMA in DeepSpeed's engine, ZeRO 2 on one rank, batches in memory, each preset with and without torch.compile. MFU is
three times the FLOPs of the forward pass (attention included, a multiply-add is two, recomputation is not counted) over
time and the GPU's dense bf16 peak. The best auditable reference, MLPerf's Stable Diffusion v2 U-Net on H200, reaches 26
to 31%. A batch that does not fit is halved. No result is recorded yet: this was written without access to a GPU.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.forked import run_forked
from benchmarks.result import make_claim, write_result
from train.config import TrainConfig
from train.engine import Engine
from train.models.backbones import build_denoiser, denoiser_config
from train.models.base import Conditions, DenoiserConfig
from train.timing import peak_memory_mb, peak_tflops

# Preset -> batch size and side of the images; super-resolution to 1024 trains on crops of 256 (F.3).
CASES = {
    "imagen-base-300m": (128, 64),
    "imagen-base-2b": (32, 64),
    "imagen-sr256-600m": (32, 256),
    "imagen-sr1024-400m": (32, 256),
}
TOKENS, WARM, STEPS, TARGET = 64, 5, 20, 0.35


def make_inputs(
    config: DenoiserConfig, batch: int, size: int, device: torch.device
) -> tuple[Tensor, Tensor, Conditions]:
    """Returns the arguments of a forward pass; every caption has `TOKENS` tokens."""
    x_BCHW = torch.randn(batch, config.image_channels, size, size, device=device)
    log_snr_B = torch.randn(batch, device=device)
    conditions = Conditions(
        text_BLD=torch.randn(batch, TOKENS, config.text_dim, device=device),
        text_mask_BL=torch.ones(batch, TOKENS, dtype=torch.bool, device=device),
        text_keep_B=torch.rand(batch, device=device) >= 0.1,
    )
    if config.lowres:
        conditions = conditions._replace(
            lowres_BCHW=torch.randn_like(x_BCHW), lowres_log_snr_B=torch.randn_like(log_snr_B)
        )
    return x_BCHW, log_snr_B, conditions


def measure_preset(preset: str, batch: int, size: int, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Returns a row; None if the batch does not fit into memory. ``settings`` are fields of `TrainConfig`."""
    config = denoiser_config(preset)
    torch.manual_seed(0)
    try:
        engine = Engine(build_denoiser(config), TrainConfig(batch_size=batch, **settings))
        given = make_inputs(config, batch, size, engine.device)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            engine(*given)
        seconds = []
        for _ in range(WARM + STEPS):
            start = time.perf_counter()
            engine.backward((engine(*given) - given[0]).square().mean())
            engine.step(1e-5)
            if engine.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return None
    step, peak = statistics.median(seconds[WARM:]), peak_tflops(engine.device, None)
    row = {"preset": preset, "parameters": engine.parameters, "batch": batch, "size": size, **settings}
    row |= {"ms": round(1000 * step, 2), "images_per_second": round(batch / step, 1)}
    row |= {"tflop": round(3 * counter.get_total_flops() / 1e12, 3), "peak_mb": peak_memory_mb(engine.device)}
    return row | {"mfu": round(row["tflop"] / step / peak, 4) if peak else None}


def read_gpu_name() -> str | None:
    """Returns the GPU's name, or None. Called in a forked process: one that has initialized CUDA cannot fork."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def main() -> None:
    """Measures the presets on the command line, or all; writes the result."""
    presets = sys.argv[1:] or list(CASES)
    unknown = [preset for preset in presets if preset not in CASES]
    if unknown:
        raise SystemExit(f"unknown presets {', '.join(unknown)}; valid are {', '.join(CASES)}")
    name = run_forked(read_gpu_name)
    if name is None:
        raise SystemExit("this benchmark needs a CUDA GPU, and torch finds none; benchmarks.train_step runs on a CPU")
    rows = []
    for preset in presets:
        for compiled in (False, True):
            batch, size = CASES[preset]
            settings = {"precision": "bf16", "zero_stage": 2, "compile": compiled}
            while (row := run_forked(measure_preset, preset, batch, size, settings)) is None and batch > 1:
                batch //= 2
            if row is None:
                raise SystemExit(f"{preset}: not even one image fits into {name}'s memory")
            print(row, flush=True)
            rows.append(row | {"gpu": name})
    best = max((row["mfu"] or 0.0 for row in rows if row["preset"].startswith("imagen-base")), default=0.0)
    write_result(
        "train_step_gpu", rows, [make_claim("MFU of the base in bf16", best, "share", TARGET)], ("torch", "deepspeed")
    )


if __name__ == "__main__":
    main()
