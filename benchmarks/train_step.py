"""What one training step of the U-Net costs: ours beside imagen-pytorch's and diffusers'.

    pip install --no-deps --target .peers/unets imagen-pytorch==2.1.0 diffusers==0.42.1 accelerate beartype \
        ema-pytorch kornia kornia-rs pytorch-warmup sentencepiece
    PYTHONPATH=.peers/unets python -m benchmarks.train_step

64x64 pictures, width 64, multipliers 1-2-3-4, one residual block a level, attention at 32, 16 and 8 with heads of 64,
a caption of 64 tokens of 512, batch 8, float32, one thread. A step is the forward pass, a squared error, the backward
pass and fused AdamW, the same for all; only the network is each side's own, with parameters made equal by the width of
the caption's tokens, which costs next to nothing. Sides take turns, each turn in a process of its own, whose peak
memory is read. Compared are the quickest steps, in CPU-seconds: on a shared machine all else is other people's noise.
The operations of each side are counted, so that it shows what comes of doing less, and what of doing it quicker.

"ours, memory kept" is the same network with what the trainer does to its process (train/memory.py), which the peers'
scripts do not. diffusers gets no mask of the caption, which its joint attention cannot take (nor does DeepFloyd IF give
it one); ours and imagen-pytorch's do. "ours, efficient" is F.2's order of layers, no peer of theirs: it does less.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.apart import apart, peak_mb
from benchmarks.result import claim, write
from dataprep.torchvision_operators import declare_torchvision_operators
from train.memory import keep_freed_memory
from train.models.presets import unet_config
from train.models.unet import UNet

BATCH, SIZE, TOKENS, TEXT_DIM = 8, 64, 64, 512
TURNS, WARM, STEPS = 3, 1, 2
WIDTHS = (64, 128, 192, 256)
EQUAL = {"context_width": 160, "condition_width": 448}  # for as many parameters as the peers have
Side = Callable[[], tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]]


def batch() -> dict[str, Tensor]:
    """Noisy pictures, times in [0, 1) with their log-SNR, captions, and what the network is to say."""
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


def ours(**changes: Any) -> tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]:
    """The preset ``small-base``."""
    model = UNet(unet_config("small-base", text_dim=TEXT_DIM, **changes))
    names = ("x_BCHW", "log_snr_B", "text_BLD", "text_mask_BL", "text_keep_B")
    return model, lambda given: model(**{name: given[name] for name in names})


def imagen_pytorch() -> tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]:
    """Its Unet with the arguments that its README gives names to."""
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


def diffusers() -> tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]:
    """UNet2DConditionModel in the layout of DeepFloyd IF, which is the paper's."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
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
    "imagen-pytorch": imagen_pytorch,
    "diffusers": diffusers,
    "ours": lambda: ours(**EQUAL),
    "ours, memory kept": lambda: ours(**EQUAL),
    "ours, efficient": lambda: ours(**EQUAL, order="efficient", strides=(2, 2, 2, 2), blocks=(1, 2, 2, 2)),
}
# The counter of torch knows a GPU's attention kernels, not the CPU's.
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def count(side: str) -> dict[str, Any]:
    """Parameters, and operations of the forward and the backward pass (a multiplication and an addition are two)."""
    model, predict = SIDES[side]()
    given = batch()
    mapping = {
        ATTENTION: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        ATTENTION_BACKWARD: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        (predict(given) - given["target_BCHW"]).square().mean().backward()
    return {"parameters": sum(p.numel() for p in model.parameters()), "gflop": counter.get_total_flops() / 1e9}


def measure(side: str) -> dict[str, Any]:
    """CPU-seconds of each step after the warm-up, and the most memory in MB, of which what was there before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if side.endswith("memory kept"):
        keep_freed_memory()
    before = peak_mb()
    model, predict = SIDES[side]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    given, seconds = batch(), []
    for _ in range(WARM + STEPS):
        start = time.process_time()
        (predict(given) - given["target_BCHW"]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
    return {"cpu_s": seconds[WARM:], "peak_mb": peak_mb(), "before_mb": before}


def import_peers() -> None:
    """Imports what the sides need, so that the forked processes share it; imagen-pytorch asks a hub for T5's width."""
    declare_torchvision_operators()  # transformers imports torchvision
    try:
        import transformers

        transformers.T5Config.from_pretrained = classmethod(lambda cls, name, **_: cls(d_model=TEXT_DIM))
        import diffusers.models.unets.unet_2d_condition  # noqa: F401
        import imagen_pytorch  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"{error}; install the peers first:\n{__doc__}") from error


def main() -> None:
    """Lets the sides take turns, and prints and keeps the result."""
    import_peers()
    counted = {side: apart(count, side) for side in SIDES}
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for turn in range(TURNS):
        for side in SIDES:
            turns[side].append(apart(measure, side))
            print(f"turn {turn}: {side:<18} {min(turns[side][-1]['cpu_s']):.2f} CPU-s a step", flush=True)
    report([summary(side, counted[side], turns[side]) for side in SIDES])


def summary(side: str, counted: dict[str, Any], turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of a side: its quickest step, its operations a second, its most memory, in all and over the imports."""
    steps = [second for one in turns for second in one["cpu_s"]]
    row = {"side": side, **counted, "cpu_s": min(steps), "gflop_a_cpu_second": counted["gflop"] / min(steps)}
    row["peak_mb"] = max(one["peak_mb"] for one in turns)
    row["grown_mb"] = max(one["peak_mb"] - one["before_mb"] for one in turns)
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
    return rounded | {"steps": [round(second, 3) for second in steps]}


def report(rows: list[dict[str, Any]]) -> None:
    """The claims about the layout that the peers have too; the efficient order is a row, not a claim."""
    by_side = {row["side"]: row for row in rows}
    peers, mine = [by_side[side] for side in ("imagen-pytorch", "diffusers")], by_side["ours"]
    sizes = [row["parameters"] for row in (*peers, mine)]
    best = min(row["cpu_s"] for row in peers)
    kept = by_side["ours, memory kept"]
    claims = [
        claim("CPU-seconds a step over the better peer's, network alone", mine["cpu_s"] / best, "times", 0.8, True),
        claim("CPU-seconds a step over the better peer's, as trained", kept["cpu_s"] / best, "times", 0.8, True),
        claim(
            "peak memory over the lesser peer's", mine["peak_mb"] / min(r["peak_mb"] for r in peers), "times", 1, True
        ),
        claim("most over least parameters of the sides", max(sizes) / min(sizes), "times", 1.03, True),
    ]
    write("train_step", rows, claims, ("torch", "diffusers", "imagen-pytorch"))


if __name__ == "__main__":
    main()
