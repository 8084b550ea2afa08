"""Presets of the wrapper of diffusers' UNet2DConditionModel."""

from __future__ import annotations

from typing import Any

from train.models.diffusers_unet.config import DiffusersUNetConfig, UNet2DSettings

FOLDER_PRESET = "diffusers-unet"  # carries the architecture of a folder in `model_overrides`

# What all networks of DeepFloyd IF have in common.
IF: dict[str, Any] = {
    "out_channels": 6,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "cross_attention_norm": "group_norm",
    "resnet_time_scale_shift": "scale_shift",
    "encoder_hid_dim_type": "text_proj",
}
SUPER_RESOLUTION: dict[str, Any] = {
    "in_channels": 6,
    "class_embed_type": "timestep",
    "time_embedding_act_fn": "gelu",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1 / 0.7071,
    "mid_block_scale_factor": 1 / 0.7071,
    "only_cross_attention": True,
}
MICRO: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "encoder_hid_dim": 32,
    "attention_head_dim": 8,
    "addition_embed_type_num_heads": 4,
}
XL: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 3,
    "block_out_channels": (704, 1408, 2112, 2816),
    "down_block_types": ("ResnetDownsampleBlock2D", *(["SimpleCrossAttnDownBlock2D"] * 3)),
    "up_block_types": (*(["SimpleCrossAttnUpBlock2D"] * 3), "ResnetUpsampleBlock2D"),
    "layers_per_block": 3,
    "cross_attention_dim": 2816,
    "encoder_hid_dim": 4096,
    "attention_head_dim": 64,
}


def _config(**keys: Any) -> DiffusersUNetConfig:
    unet = UNet2DSettings(**(IF | keys))
    return DiffusersUNetConfig(unet=unet, text_dim=unet.text_width, lowres=unet.in_channels == 6)


MICRO_BASE = _config(**MICRO, sample_size=16, in_channels=3, layers_per_block=1)
PRESETS: dict[str, DiffusersUNetConfig] = {
    "if-i-xl": _config(**XL),  # stage I of 4.3B parameters
    # For tests and smoke runs: the architecture of stages I and II.
    "micro-if": MICRO_BASE,
    "micro-if-sr": _config(**MICRO, **SUPER_RESOLUTION, sample_size=32, layers_per_block=(1, 2), time_embedding_dim=32),
    FOLDER_PRESET: MICRO_BASE,
}
