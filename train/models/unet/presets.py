"""Named U-Net layouts, by family. Light: loads no torch.

``imagen-*`` follow the paper, with the width of T5-XXL; docs/models.md lists sizes and what the paper leaves open.
"""

from __future__ import annotations

from typing import Any

from train.models.unet.config import UNetConfig

# F.1: 64x64, three blocks per level, attention at 32, 16 and 8 with heads of 64 channels, joined with the text (D.3.1).
_BASE: dict[str, Any] = {
    "channel_mult": (1, 2, 3, 4),
    "blocks": (3, 3, 3, 3),
    "strides": (1, 2, 2, 2),
    "attention": ("none", "joint", "joint", "joint"),
    "head_width": 64,
    "groups": 32,
    "text_dim": 4096,
    "context_width": 512,
}
# F.2 and F.3: the same four levels, each with stride 2; 8 heads of 1024 / 8 channels on the last one.
_EFFICIENT: dict[str, Any] = {
    "order": "efficient",
    "lowres": True,
    "channels": 128,
    "channel_mult": (1, 2, 4, 8),
    "blocks": (2, 4, 8, 8),
    "strides": (2, 2, 2, 2),
    "middle": False,
    "combine": "level",
    "head_width": 128,
    "feed_forward": 2,
    "groups": 32,
    "text_dim": 4096,
    "context_width": 512,
    "condition_width": 512,
}
IMAGEN: dict[str, UNetConfig] = {
    "imagen-base-2b": UNetConfig(**_BASE, channels=512, condition_width=2048),
    # The size of the paper's ablations; the layout of ADM's 64x64 model, from which F.1 starts.
    "imagen-base-300m": UNetConfig(**_BASE, channels=192, condition_width=768),
    # Attention after each block of the last level; only after the last block, as in A.28, it would be 441M.
    "imagen-sr256-600m": UNetConfig(**_EFFICIENT, attention=("none", "none", "none", "joint")),
    # 256x256 -> 1024x1024, trained on 256x256 crops: cross-attention to the caption, no self-attention.
    "imagen-sr1024-400m": UNetConfig(
        **_EFFICIENT, attention=("none", "none", "none", "cross"), attention_every_block=False
    ),
}
# Super-resolution in F.2's order, narrower. It learns the difference to the resized image, so it predicts x0.
_SMALL_SR: dict[str, Any] = {
    "order": "efficient",
    "lowres": True,
    "lowres_residual": True,
    "channels": 32,
    "channel_mult": (1, 2, 4, 8),
    "blocks": (1, 2, 4, 4),
    "strides": (2, 2, 2, 2),
    "attention_every_block": False,
    "middle": False,
    "feed_forward": 2,
    "text_dim": 512,
}
# The same resolutions for a laptop or one small GPU, with the text width of T5-small.
SMALL: dict[str, UNetConfig] = {
    "small-base": UNetConfig(**_BASE | {"blocks": (1, 1, 1, 1), "text_dim": 512, "context_width": 128}),
    "small-sr256": UNetConfig(**_SMALL_SR, attention=("none", "none", "none", "joint")),
    "small-sr1024": UNetConfig(**_SMALL_SR, attention=("none", "none", "none", "cross")),
}
# 16x16: all blocks work at 8x8 and 4x4, where steps are cheap; the stem keeps the detail.
_TINY_BASE: dict[str, Any] = {
    "order": "efficient",
    "blocks": (1, 1),
    "strides": (2, 2),
    "attention": ("joint", "joint"),
    "middle": False,
    "positions": True,
    "context_width": 96,
}
# For the demo on two CPU cores.
TINY: dict[str, UNetConfig] = {
    "tiny-base": UNetConfig(
        **_TINY_BASE, channels=32, channel_mult=(2, 4), head_width=32, text_layers=1, condition_width=192
    ),
    # What the ablations left of it (docs/training.md): few channels, so that an update is cheap and there are many, and
    # two layers over the tokens of a small T5, a third of whose heads look back only and a third ahead only.
    "demo-base": UNetConfig(
        **_TINY_BASE,
        channels=24,
        channel_mult=(1, 2),
        head_width=24,
        text_layers=2,
        text_directions=True,
        condition_width=96,
    ),
    # 16x16 -> 64x64, for prediction x0: almost all work at 16x16 and 8x8.
    "tiny-sr64": UNetConfig(
        order="efficient",
        lowres=True,
        lowres_residual=True,
        channels=16,
        channel_mult=(2, 4, 4),
        blocks=(1, 2, 2),
        strides=(2, 2, 2),
        attention=("none", "none", "joint"),
        middle=False,
        head_width=32,
        groups=8,
        context_width=64,
        condition_width=128,
    ),
    # 64x64 -> 256x256, trained on 64x64 crops, run on whole images: no self-attention, the caption at the lowest level.
    "tiny-sr256": UNetConfig(
        order="efficient",
        lowres=True,
        lowres_residual=True,
        channels=12,
        channel_mult=(2, 4, 4),
        blocks=(1, 1, 2),
        strides=(2, 2, 2),
        attention=("none", "none", "cross"),
        middle=False,
        head_width=24,
        groups=6,
        context_width=48,
        condition_width=96,
    ),
}
# For tests and smoke runs: complete, but too small to learn much.
MICRO: dict[str, UNetConfig] = {
    "micro-base": UNetConfig(
        channels=16,
        channel_mult=(1, 1.5),
        blocks=(1, 1),
        strides=(1, 2),
        attention=("none", "joint"),
        middle=False,
        positions=True,
        head_width=12,
        groups=8,
        context_width=32,
        condition_width=32,
    ),
    "micro-sr": UNetConfig(
        order="efficient",
        lowres=True,
        lowres_residual=True,
        channels=8,
        channel_mult=(2, 2),
        blocks=(1, 1),
        strides=(2, 2),
        attention=("none", "cross"),
        middle=False,
        head_width=8,
        groups=4,
        context_width=16,
        condition_width=32,
    ),
}
PRESETS: dict[str, UNetConfig] = IMAGEN | SMALL | TINY | MICRO
