"""Cost of a training step: our U-Net, imagen-pytorch's and diffusers'; our transformer and diffusers' closest.

    pip install --no-deps --target .peers/unets imagen-pytorch==2.1.0 diffusers==0.42.1 accelerate beartype \
        ema-pytorch kornia kornia-rs pytorch-warmup sentencepiece
    PYTHONPATH=.peers/unets python -m benchmarks.train_step [PART]

With PART, such as ``transformer``, only the sides whose name contains it. The rows of the others are kept, and the
file's commit and date are theirs; each row has its own.

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

Of diffusers' transformers PixArt's is the closest: text by cross-attention, one modulation for all blocks, patches of
any number of channels. Ours has the same layout at the same width, 384, and depth, 8, on patches of 4. It differs in
SwiGLU for GELU, QK-norm and rotary positions; both take the caption's mask.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.forked import measure_peak_mb, run_forked
from benchmarks.result import RESULTS, make_claim, read_commit, write_result
from dataprep.io.model_imports import declare_torchvision_operators
from train.malloc import keep_freed_memory
from train.models.backbones import build_denoiser, denoiser_config
from train.models.base import Conditions

BATCH, SIZE, TOKENS, TEXT_DIM = 8, 64, 64, 512
TURNS, WARM, STEPS = 3, 1, 2
WIDTHS = (64, 128, 192, 256)
EQUAL: dict[str, Any] = {"context_width": 160, "condition_width": 448}  # equal parameter count to the peers
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


def build_ours(model: str = "small-base", **changes: Any) -> tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]:
    """Builds a preset of ours."""
    net = build_denoiser(denoiser_config(model, {"text_dim": TEXT_DIM, **changes}))
    names = ("text_BLD", "text_mask_BL", "text_keep_B")
    return net, lambda given: net(
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


def build_transformer() -> tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]:
    """Builds our transformer in PixArt's layout."""
    return build_ours(attention="cross", context_width=384, condition_width=256, model="dit-small-base")


def build_pixart() -> tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]:
    """Builds PixArtTransformer2DModel in pixel space."""
    from diffusers import PixArtTransformer2DModel

    model: Any = PixArtTransformer2DModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        patch_size=4,
        num_attention_heads=6,
        attention_head_dim=64,
        num_layers=8,
        cross_attention_dim=384,
        caption_channels=TEXT_DIM,
        use_additional_conditions=False,
        norm_type="ada_norm_single",
    )

    def predict(given: dict[str, Tensor]) -> Tensor:
        text, mask = given["text_BLD"], given["text_mask_BL"]
        output: Tensor = model(
            given["x_BCHW"],
            encoder_hidden_states=text,
            timestep=given["t_B"] * 1000,
            encoder_attention_mask=mask,
        ).sample
        return output

    return model, predict


SIDES: dict[str, Side] = {
    "imagen-pytorch": build_imagen_pytorch,
    "diffusers": build_diffusers,
    "ours": lambda: build_ours(**EQUAL),
    "ours, memory kept": lambda: build_ours(**EQUAL),
    "diffusers, transformer": build_pixart,
    "ours, transformer": build_transformer,
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


def import_peers(sides: Iterable[str]) -> None:
    """Imports the sides' peers before forking; answers imagen-pytorch's request to the hub for T5's width meanwhile."""
    declare_torchvision_operators()  # transformers imports torchvision
    try:
        import transformers

        answer = classmethod(lambda cls, name, **_: cls(d_model=TEXT_DIM))
        with mock.patch.object(transformers.T5Config, "from_pretrained", answer):
            import diffusers.models.transformers.pixart_transformer_2d
            import diffusers.models.unets.unet_2d_condition  # noqa: F401

            if "imagen-pytorch" in sides:
                import imagen_pytorch  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"{error}; install the peers first:\n{__doc__}") from error


def main() -> None:
    """Runs the sides in turns, prints and writes the result."""
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    sides = [side for side in SIDES if part in side]
    import_peers(sides)
    counted = {side: run_forked(count_cost, side) for side in sides}
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(TURNS):
        for side in sides:
            turns[side].append(run_forked(measure_steps, side))
            print(f"turn {turn}: {side:<22} {min(turns[side][-1]['cpu_s']):.2f} CPU-s per step", flush=True)
    rows = [summarize_side(side, counted[side], turns[side]) for side in sides]
    recorded: dict[str, Any] = json.loads((RESULTS / "train_step.json").read_text()) if part else {"rows": []}
    found = {row["side"]: row for row in recorded["rows"] + rows}
    more: dict[str, Any] = {name: recorded[name] for name in ("commit", "date", "versions") if name in recorded}
    write_claims([found[side] for side in SIDES if side in found], more)


def summarize_side(side: str, counted: dict[str, Any], turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the row of a side: fastest step, FLOPs per second, peak memory in total and beyond the imports."""
    steps = [second for one in turns for second in one["cpu_s"]]
    row = {"side": side, **counted, "cpu_s": min(steps), "gflop_per_cpu_second": counted["gflop"] / min(steps)}
    row["peak_mb"] = max(one["peak_mb"] for one in turns)
    row["grown_mb"] = max(one["peak_mb"] - one["before_mb"] for one in turns)
    row |= {"commit": read_commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
    return rounded | {"steps": [round(second, 3) for second in steps]}


def write_claims(rows: list[dict[str, Any]], more: dict[str, Any]) -> None:
    """Writes the result, with claims about the layouts that the peers have too; ``more`` as in `write_result`."""
    by_side = {row["side"]: row for row in rows}
    claims = []
    if "ours" in by_side:
        claims += claim_side(by_side, ("imagen-pytorch", "diffusers"), ("ours", "ours, memory kept"), "", 0.8)
    if "ours, transformer" in by_side:
        claims += claim_side(by_side, ("diffusers, transformer",), ("ours, transformer",), "transformer: ", 1.0)
    packages = ("torch", "diffusers", *(("imagen-pytorch",) if "versions" not in more else ()))
    write_result("train_step", rows, claims, packages, **more)


def claim_side(
    by_side: dict[str, dict[str, Any]], peers: Sequence[str], ours: Sequence[str], kind: str, target: float
) -> list[dict[str, Any]]:
    """Returns the claims of our network of a kind, and as the trainer runs it if that is measured, over the peers."""
    rows, mine = [by_side[side] for side in peers], by_side[ours[0]]
    best, sizes = min(row["cpu_s"] for row in rows), [row["parameters"] for row in (*rows, mine)]
    claims = []
    for side, how in zip(ours, ("network alone", "as trained"), strict=False):
        text = f"{kind}CPU-seconds per step over the faster peer's, {how}"
        claims.append(make_claim(text, by_side[side]["cpu_s"] / best, "times", target, True))
    memory = mine["peak_mb"] / min(row["peak_mb"] for row in rows)
    claims.append(make_claim(f"{kind}peak memory over the smaller peer's", memory, "times", 1, True))
    text = f"{kind}largest over smallest parameter count of the sides"
    return [*claims, make_claim(text, max(sizes) / min(sizes), "times", 1.03, True)]


if __name__ == "__main__":
    main()
