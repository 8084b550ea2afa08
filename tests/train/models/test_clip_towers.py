"""Image towers: their shapes, and no statistics of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from train.models.clip_config import ClipModelConfig
from train.models.clip_towers import IMAGE_TOWERS, build_image_tower


@pytest.mark.parametrize("kind", IMAGE_TOWERS)
def test_features_of_an_image_do_not_depend_on_the_batch(kind: str) -> None:
    torch.manual_seed(0)
    tower = build_image_tower(ClipModelConfig.model_validate({"image_size": 32, "embed_dim": 16, "image_tower": kind}))
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.1)  # blocks that start at zero too
    image_BCHW = torch.rand(3, 3, 32, 32)
    features_BD = tower(image_BCHW)
    assert features_BD.shape == (3, 16)
    torch.testing.assert_close(tower(image_BCHW[:1]), features_BD[:1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features_BD[0], features_BD[1], atol=1e-3)


def test_the_patches_of_a_vision_transformer() -> None:
    sizes = {"image_size": 64, "image_tower": "vit", "patch_size": 16, "vit_width": 48, "vit_layers": 3, "vit_heads": 2}
    tower = build_image_tower(ClipModelConfig.model_validate(sizes))
    shapes = {name: tuple(parameter.shape) for name, parameter in tower.named_parameters()}
    assert shapes["positional_embedding"] == (1 + (64 // 16) ** 2, 48)
    assert sum(name.endswith("attn.in_proj_weight") for name in shapes) == 3
