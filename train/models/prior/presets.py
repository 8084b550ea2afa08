"""Named layouts of the prior. Light: loads no torch. docs/dalle2.md lists their sizes."""

from __future__ import annotations

from train.models.prior.config import PriorConfig

PRESETS: dict[str, PriorConfig] = {
    # Ramesh et al. 2022, appendix C: 24 blocks of width 2048, for CLIP ViT-L/14's 768 numbers and T5-XXL's tokens.
    "prior-1b": PriorConfig(image_channels=768, text_dim=4096, width=2048, depth=24),
    "prior-300m": PriorConfig(image_channels=768, text_dim=4096, width=1024, depth=24),
    # One small GPU.
    "prior-small": PriorConfig(image_channels=512, text_dim=768, width=512, depth=8),
    # The demo on two cores.
    "prior-tiny": PriorConfig(width=128, depth=4, head_width=32),
    # For tests and smoke runs: complete, but too small to learn much.
    "prior-micro": PriorConfig(image_channels=16, width=32, depth=2, head_width=16),
}
