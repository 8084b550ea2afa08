"""Cost of a training step of the U-Net: ours, imagen-pytorch's and diffusers'.

    pip install --no-deps --target .peers/unets imagen-pytorch==2.1.0 diffusers==0.42.1 accelerate beartype \
        ema-pytorch kornia kornia-rs pytorch-warmup sentencepiece
    PYTHONPATH=.peers/unets python -m benchmarks.train_step

64x64 images, width 64, multipliers 1-2-3-4, one residual block per level, attention at 32, 16 and 8 with heads of 64, a
caption of 64 tokens of width 512, batch 8, float32, one thread. A step is the forward pass, a squared error, the
backward pass and fused AdamW. Only the network differs between the sides; the width of the caption's tokens, which
costs almost nothing, is set so that parameter counts are equal. The sides take turns, each turn in its own process,
whose peak memory is read. The fastest steps are compared, in CPU-seconds: on a shared machine slower ones measure other
load. FLOPs are counted too, which separates doing less from doing it faster.

What is counted: CPU-seconds of the process in the step alone. Not counted: imports, building the network, the first
steps, data, and the peers' own trainers; `benchmarks.trainer_overhead` has what our loop adds to a step. Nobody would
type any of these as a command: it is a comparison of networks.

"ours, memory kept" is the same network with the trainer's allocator settings (train/malloc.py), which the peers'
scripts lack. diffusers gets no caption mask, since its joint attention does not accept one (nor does DeepFloyd IF pass
one); ours and imagen-pytorch's do. "ours, efficient" has the layer order of F.2; it does less than the peers, so no
claim uses it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.forked import measure_peak_mb, run_forked
from benchmarks.result import make_claim, write_result
from dataprep.io.model_imports import declare_torchvision_operators
from train.malloc import keep_freed_memory
from train.models.backbones import build_denoiser, denoiser_config
from train.models.base import Conditions

BATCH, SIZE, TOKENS, TEXT_DIM = 8, 64, 64, 512
TURNS, WARM, STEPS = 3, 1, 2
WIDTHS = (64, 128, 192, 256)
EQUAL = {"context_width": 160, "condition_width": 448}  # equal parameter count to the peers
Side = Callable[[], tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]]


def make_batch() -> dict[str, Tensor]:
    """Returns noisy images, times in [0, 1) with their log-SNR, captions, and targets."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, BATCH, 3, SIZE, SIZE, generator=generator)
    t_B = torch.rand(BATCH, generator=generator)
    return {
        "x_BCHW": images[0],
        "target_BCHW": images[1],
        "t_B": t_B,
        "log_snr_B": -2 * torch.tan(t_B * 1.5).log(),
        "text_BLD": torch.randn(BATCH, TOKENS, TEXT_DIM, generator=generator),
        "text_mask_BL": torch.ones(BATCH, TOKENS, dtype=torch.bool),
        "text_keep_B": torch.rand(BATCH, generator=generator) >= 0.1,
    }


def build_ours(**changes: Any) -> tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]:
    """Builds the preset ``small-base``."""
    model = build_denoiser(denoiser_config("small-base", {"text_dim": TEXT_DIM, **changes}))
    names = ("text_BLD", "text_mask_BL", "text_keep_B")
    return model, lambda given: model(
        given["x_BCHW"], given["log_snr_B"], Conditions(**{name: given[name] for name in names})
    )


def build_imagen_pytorch() -> tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]:
    """Builds its Unet with the arguments that its README names."""
    from imagen_pytorch import Unet

    model = Unet(
        dim=WIDTHS[0],
        dim_mults=(1, 2, 3, 4),
        num_resnet_blocks=1,
        layer_attns=(False, True, True, True),
        layer_cross_attns=(False, True, True, True),
        attn_heads=4,
        text_embed_dim=TEXT_DIM,
        max_text_len=TOKENS,
        cond_dim=192,
    )
    return model, lambda given: model(
        given["x_BCHW"],
        given["log_snr_B"],
        text_embeds=given["text_BLD"],
        text_mask=given["text_mask_BL"],
        cond_drop_prob=0.1,
    )


def build_diffusers() -> tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]:
    """Builds UNet2DConditionModel in the layout of DeepFloyd IF, which is the paper's."""
    from diffusers import UNet2DConditionModel

    model: Any = UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=(*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=64,
        cross_attention_dim=128,
        encoder_hid_dim=TEXT_DIM,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        norm_num_groups=16,
    )
    return model, lambda given: model(given["x_BCHW"], given["t_B"] * 1000, given["text_BLD"]).sample


SIDES: dict[str, Side] = {
    "imagen-pytorch": build_imagen_pytorch,
    "diffusers": build_diffusers,
    "ours": lambda: build_ours(**EQUAL),
    "ours, memory kept": lambda: build_ours(**EQUAL),
    "ours, efficient": lambda: build_ours(**EQUAL, order="efficient", strides=(2, 2, 2, 2), blocks=(1, 2, 2, 2)),
}
# FlopCounterMode knows the attention kernels of GPUs only.
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def count_cost(side: str) -> dict[str, Any]:
    """Returns parameters and GFLOPs of a forward and backward pass (a multiply-add is two FLOPs)."""
    model, predict = SIDES[side]()
    given = make_batch()
    mapping = {
        ATTENTION: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        ATTENTION_BACKWARD: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        (predict(given) - given["target_BCHW"]).square().mean().backward()
    return {"parameters": sum(p.numel() for p in model.parameters()), "gflop": counter.get_total_flops() / 1e9}


def measure_steps(side: str) -> dict[str, Any]:
    """Returns the CPU-seconds of each step after the warm-up, and the memory in MiB: peak, and before the model."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if side.endswith("memory kept"):
        keep_freed_memory()
    before = measure_peak_mb()
    model, predict = SIDES[side]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    given, seconds = make_batch(), []
    for _ in range(WARM + STEPS):
        start = time.process_time()
        (predict(given) - given["target_BCHW"]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
    return {"cpu_s": seconds[WARM:], "peak_mb": measure_peak_mb(), "before_mb": before}


def import_peers() -> None:
    """Imports the peers before forking; replaces the hub request of imagen-pytorch for T5's width."""
    declare_torchvision_operators()  # transformers imports torchvision
    try:
        import transformers

        transformers.T5Config.from_pretrained = classmethod(lambda cls, name, **_: cls(d_model=TEXT_DIM))
        import diffusers.models.unets.unet_2d_condition  # noqa: F401
        import imagen_pytorch  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"{error}; install the peers first:\n{__doc__}") from error


def main() -> None:
    """Runs the sides in turns, prints and writes the result."""
    import_peers()
    counted = {side: run_forked(count_cost, side) for side in SIDES}
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for turn in range(TURNS):
        for side in SIDES:
            turns[side].append(run_forked(measure_steps, side))
            print(f"turn {turn}: {side:<18} {min(turns[side][-1]['cpu_s']):.2f} CPU-s per step", flush=True)
    write_claims([summarize_side(side, counted[side], turns[side]) for side in SIDES])


def summarize_side(side: str, counted: dict[str, Any], turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the row of a side: fastest step, FLOPs per second, peak memory in total and beyond the imports."""
    steps = [second for one in turns for second in one["cpu_s"]]
    row = {"side": side, **counted, "cpu_s": min(steps), "gflop_per_cpu_second": counted["gflop"] / min(steps)}
    row["peak_mb"] = max(one["peak_mb"] for one in turns)
    row["grown_mb"] = max(one["peak_mb"] - one["before_mb"] for one in turns)
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
    return rounded | {"steps": [round(second, 3) for second in steps]}


def write_claims(rows: list[dict[str, Any]]) -> None:
    """Writes the result, with claims about the layout that the peers have too."""
    by_side = {row["side"]: row for row in rows}
    peers, mine = [by_side[side] for side in ("imagen-pytorch", "diffusers")], by_side["ours"]
    sizes = [row["parameters"] for row in (*peers, mine)]
    best = min(row["cpu_s"] for row in peers)
    kept = by_side["ours, memory kept"]
    claims = [
        make_claim(
            "CPU-seconds per step over the faster peer's, network alone", mine["cpu_s"] / best, "times", 0.8, True
        ),
        make_claim("CPU-seconds per step over the faster peer's, as trained", kept["cpu_s"] / best, "times", 0.8, True),
        make_claim(
            "peak memory over the smaller peer's", mine["peak_mb"] / min(r["peak_mb"] for r in peers), "times", 1, True
        ),
        make_claim("largest over smallest parameter count of the sides", max(sizes) / min(sizes), "times", 1.03, True),
    ]
    write_result("train_step", rows, claims, ("torch", "diffusers", "imagen-pytorch"))


if __name__ == "__main__":
    main()
