"""Named layouts of the diffusion transformer. Light: loads no torch. docs/models.md lists their sizes."""

from __future__ import annotations

from typing import Any

from train.models.dit.config import DiTConfig

_LARGE: dict[str, Any] = {"text_dim": 4096, "context_width": 1024, "text_layers": 2}
# JiT-H is 1280 wide and 32 deep with heads of 80; heads of 64 suit every attention kernel.
_1B: dict[str, Any] = _LARGE | {"width": 1280, "depth": 32, "condition_width": 1280}
_300M: dict[str, Any] = _LARGE | {"width": 896, "depth": 20, "condition_width": 512}
LARGE: dict[str, DiTConfig] = {
    # 64x64 in 256 patches: the base of a cascade.
    "dit-base-1b": DiTConfig(**_1B, patch=4),
    "dit-base-300m": DiTConfig(**_300M, patch=4),
    # 256x256 in as many patches, at the same cost: a base in place of two stages (JiT's patches of 16).
    "dit-256-1b": DiTConfig(**_1B, patch=16, bottleneck=256),
    # 64 -> 256 in 1024 patches, whole images.
    "dit-sr256-300m": DiTConfig(**_300M, patch=8, lowres=True, bottleneck=256),
    # 256 -> 1024, trained on 256x256 crops: 1024 patches in four windows.
    "dit-sr1024-300m": DiTConfig(
        **_300M, patch=8, lowres=True, bottleneck=256, window=16, attention="cross", positions=False
    ),
}
SMALL: dict[str, DiTConfig] = {
    # 64x64 on a laptop or one small GPU.
    "dit-small-base": DiTConfig(patch=4, width=384, depth=8, modulation="shared", text_dim=512),
}
# 16x16 -> 64x64 -> 256x256, the demo on two cores.
TINY: dict[str, DiTConfig] = {
    "dit-tiny-base": DiTConfig(
        patch=2, width=128, depth=6, head_width=32, text_layers=1, context_width=96, condition_width=128
    ),
    "dit-tiny-sr64": DiTConfig(
        patch=4,
        width=128,
        depth=3,
        head_width=32,
        lowres=True,
        lowres_residual=True,
        context_width=64,
        condition_width=128,
    ),
    # Trained on 64x64 crops: windows of 32 pixels.
    "dit-tiny-sr256": DiTConfig(
        patch=8,
        width=96,
        depth=2,
        head_width=32,
        lowres=True,
        lowres_residual=True,
        window=4,
        attention="cross",
        positions=False,
        context_width=48,
        condition_width=96,
    ),
}
# For tests and smoke runs: complete, but too small to learn much.
MICRO: dict[str, DiTConfig] = {
    "dit-micro-base": DiTConfig(patch=4, width=32, depth=2, head_width=16, context_width=32, condition_width=32),
    "dit-micro-sr": DiTConfig(
        patch=4,
        width=24,
        depth=2,
        head_width=12,
        lowres=True,
        lowres_residual=True,
        window=2,
        attention="cross",
        positions=False,
        modulation="shared",
        bottleneck=16,
        context_width=16,
        condition_width=32,
    ),
}
PRESETS: dict[str, DiTConfig] = LARGE | SMALL | TINY | MICRO
