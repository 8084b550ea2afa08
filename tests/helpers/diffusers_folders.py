"""Tiny random stages of DeepFloyd IF's architecture, built and saved by diffusers itself."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from dataprep.io.model_imports import import_diffusers, import_transformers
from tests.helpers.encoders import T5, WORDS, word_tokenizer

# As scripts/convert_if.py of diffusers writes them.
SCHEDULER: dict[str, Any] = {
    "variance_type": "learned_range",
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
}
NETWORK: dict[str, Any] = {
    "out_channels": 6,
    "block_out_channels": (16, 32),
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "encoder_hid_dim": 32,
    "attention_head_dim": 8,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "cross_attention_norm": "group_norm",
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu",
}
BASE: dict[str, Any] = NETWORK | {"sample_size": 16, "in_channels": 3, "layers_per_block": 1}
UPSCALER: dict[str, Any] = NETWORK | {
    "sample_size": 32,
    "in_channels": 6,
    "layers_per_block": (1, 2),
    "class_embed_type": "timestep",
    "time_embedding_dim": 32,
    "time_embedding_act_fn": "gelu",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1 / 0.7071,
    "mid_block_scale_factor": 1 / 0.7071,
    "only_cross_attention": True,
}


@cache
def text_parts() -> tuple[Any, Any]:
    """Returns a T5 encoder 32 wide, and its tokenizer."""
    transformers = import_transformers()
    torch.manual_seed(7)
    config = transformers.T5Config(vocab_size=len(WORDS), **T5)
    return transformers.T5EncoderModel(config).eval(), word_tokenizer(WORDS)


def build_network(**keys: Any) -> Any:
    """Returns a random UNet2DConditionModel without weights that are zero."""
    torch.manual_seed(3)
    network = import_diffusers().UNet2DConditionModel(**keys).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return network


def build_pipeline(upscaler: bool = False, network: dict[str, Any] | None = None, **scheduler: Any) -> Any:
    """Returns an IFPipeline of 16 pixels, or an IFSuperResolutionPipeline of 32; ``scheduler`` changes its keys."""
    diffusers = import_diffusers()
    encoder, tokenizer = text_parts()
    settings = SCHEDULER | {"sample_max_value": 1.0 if upscaler else 1.5} | scheduler
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "unet": build_network(**((UPSCALER if upscaler else BASE) | (network or {}))),
        "scheduler": diffusers.DDPMScheduler(**settings),
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        "requires_safety_checker": False,
    }
    if upscaler:
        noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
        made = diffusers.IFSuperResolutionPipeline(**parts, image_noising_scheduler=noising)
    else:
        made = diffusers.IFPipeline(**parts)
    made.set_progress_bar_config(disable=True)
    return made


def save_pipeline(folder: Path, upscaler: bool = False, **keys: Any) -> Path:
    """Saves what `build_pipeline` returns."""
    build_pipeline(upscaler, **keys).save_pretrained(folder)
    return folder
