"""Keys of unet/config.json, presets, and what is refused by name."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from pydantic import ValidationError

from dataprep.io.model_imports import import_diffusers
from tests.helpers.diffusers_folders import BASE, UPSCALER
from train.models.backbones import count_parameters, denoiser_config
from train.models.diffusers_unet.config import DiffusersUNetConfig, UNet2DSettings
from train.models.diffusers_unet.presets import PRESETS

pytest.importorskip("diffusers")


def test_keys_and_defaults_are_those_of_diffusers() -> None:
    keys = dict(inspect.signature(import_diffusers().UNet2DConditionModel.__init__).parameters)
    del keys["self"]
    fields = UNet2DSettings.model_fields
    assert fields.keys() == keys.keys()
    for name, field in fields.items():
        assert field.is_required() or field.default == keys[name].default, name


def test_the_xl_preset_has_the_parameters_of_the_real_one() -> None:
    assert count_parameters(denoiser_config("if-i-xl")) == pytest.approx(4.3e9, rel=0.01)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_describe_themselves(name: str) -> None:
    config = PRESETS[name]
    again = DiffusersUNetConfig(**config.model_dump(mode="json"))
    assert again == config and hash(again) == hash(config)
    assert config.caption_tokens() == 77
    assert config.fixed_diffusion()["schedule"] == "discrete"
    assert ("lowres_betas" in config.fixed_diffusion()) == config.lowres


def test_sizes_are_taken_from_the_networks_keys() -> None:
    config = DiffusersUNetConfig(unet=UNet2DSettings(**UPSCALER))
    assert config.lowres and config.text_dim == 32 and config.size_multiple() == 2
    assert config.needs_whole_images() is None
    assert DiffusersUNetConfig(unet=UNet2DSettings(**BASE)).needs_whole_images() == "self-attention"
    mixed = UPSCALER | {"only_cross_attention": (True, False)}
    assert DiffusersUNetConfig(unet=UNet2DSettings(**mixed)).needs_whole_images() == "self-attention"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"in_channels": 4}, "in_channels"),
        ({"class_embed_type": "projection"}, "class_embed_type"),
        ({"addition_embed_type": "text_image"}, "addition_embed_type"),
        ({"encoder_hid_dim_type": "text_image_proj"}, "encoder_hid_dim_type"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"down_block_types": ("KDownBlock2D",) * 2}, "down_block_types"),
        ({"mid_block_type": None}, "mid_block_type"),
        ({"in_channels": 6}, "in_channels=6 with class_embed_type=None: a super-resolution model has 6 and 'timestep'"),
        ({"new_key": 1}, "new_key"),
    ],
)
def test_what_is_not_supported_is_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        UNet2DSettings(**(BASE | keys))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"text_dim": 512}, "text_dim=512: this network takes text embeddings that are 32 wide; use its own text"),
        ({"lowres": True}, "lowres=True do not fit unet.in_channels=3"),
        ({"image_channels": 1}, "image_channels=1"),
        ({"lowres_residual": True}, "lowres_residual is not supported by diffusers_unet"),
    ],
)
def test_overrides_that_do_not_fit(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        denoiser_config("micro-if", overrides)
