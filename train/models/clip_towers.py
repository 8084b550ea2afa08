"""The image towers of the small CLIP, of open_clip's modules, and the registry of their kinds.

Shape legend: B batch, S image size, D width of the shared embedding space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from dataprep.io.model_imports import import_open_clip
from train.models.clip_config import ClipModelConfig


def describe_resnet(config: ClipModelConfig) -> dict[str, Any]:
    """Returns open_clip's settings of a ResNet with attention pooling (Radford et al. 2021, 2.4)."""
    return {"layers": config.vision_blocks, "width": config.vision_width, "head_width": 32}


def describe_vit(config: ClipModelConfig) -> dict[str, Any]:
    """Returns open_clip's settings of a vision transformer that pools its class token (Dosovitskiy et al. 2021)."""
    return {
        "layers": config.vit_layers,
        "width": config.vit_width,
        "head_width": config.vit_width // config.vit_heads,
        "patch_size": config.patch_size,
    }


IMAGE_TOWERS: dict[str, Callable[[ClipModelConfig], dict[str, Any]]] = {"resnet": describe_resnet, "vit": describe_vit}


def describe_image_tower(config: ClipModelConfig) -> Any:
    """Returns the `open_clip.model.CLIPVisionCfg` of the config's image tower."""
    import_open_clip()
    from open_clip.model import CLIPVisionCfg

    return CLIPVisionCfg(image_size=config.image_size, **IMAGE_TOWERS[config.image_tower](config))


def build_image_tower(config: ClipModelConfig) -> nn.Module:
    """Returns a fresh image tower: (B, 3, S, S) in [-1, 1] -> (B, D).

    Group norms replace batch norms, so that features depend neither on the batch nor on the number of ranks.
    """
    settings = describe_image_tower(config)
    from open_clip.model import _build_vision_tower

    tower: nn.Module = _build_vision_tower(config.embed_dim, settings)
    replace_batch_norms(tower)
    return tower


def replace_batch_norms(module: nn.Module) -> None:
    """Puts a group norm in place of each batch norm below ``module``."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = nn.GroupNorm(max(1, child.num_features // 8), child.num_features)
            norm.weight.data.copy_(child.weight.data)  # zero where open_clip zero-initialises a block
            setattr(module, name, norm)
        else:
            replace_batch_norms(child)
