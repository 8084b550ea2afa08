"""Registry of the denoising networks. A stage's ``model`` names a preset; its backbone is found by that name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dataprep.io import storage
from dataprep.io.errors import UserError
from train.models.base import Backbone, Denoiser, DenoiserConfig, FolderStage
from train.models.diffusers_unet.backbone import DIFFUSERS_UNET
from train.models.dit.backbone import DIT
from train.models.prior.backbone import PRIOR
from train.models.refiner.backbone import REFINER
from train.models.unet.backbone import UNET

if TYPE_CHECKING:
    from torch import nn

BACKBONES: dict[str, Backbone] = {
    "unet": UNET,
    "diffusers_unet": DIFFUSERS_UNET,
    "dit": DIT,
    "prior": PRIOR,
    "refiner": REFINER,
}


def denoiser_config(preset: str, overrides: Mapping[str, Any] | None = None) -> DenoiserConfig:
    """Returns a preset's config with fields replaced, validated again. Raises UserError for an unknown preset."""
    for backbone in BACKBONES.values():
        if preset in backbone.presets:
            return backbone.config(**(backbone.presets[preset].model_dump() | dict(overrides or {})))
    names = sorted(name for backbone in BACKBONES.values() for name in backbone.presets)
    raise UserError(f"model preset {preset!r} is unknown; take one of {', '.join(names)}")


def is_preset(name: str) -> bool:
    """Returns whether a backbone has a preset ``name``."""
    return any(name in backbone.presets for backbone in BACKBONES.values())


def backbone_name(config: DenoiserConfig) -> str:
    """Returns the name of the backbone whose config class this is."""
    for name, backbone in BACKBONES.items():
        if type(config) is backbone.config:
            return name
    raise ValueError(f"{type(config).__name__} is the config of no backbone; add it to BACKBONES")


def find_backbone(name: str) -> Backbone:
    """Returns the backbone ``name``; raises UserError for an unknown one."""
    if name not in BACKBONES:
        raise UserError(f"backbone {name!r} is unknown; take one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def read_folder_stage(folder: str) -> FolderStage | None:
    """Returns the stage in the folder layout of another library at ``folder``; None for a folder of another kind.

    Raises UserError for one that is incomplete or not supported.
    """
    readers = [backbone.read_folder for backbone in BACKBONES.values() if backbone.read_folder is not None]
    return next((stage for read in readers if (stage := read(folder)) is not None), None)


def find_stage_folder(name: str) -> str | None:
    """Returns the local folder of a stage in the layout of another library, given as a folder, a URL or hf://owner/name.

    None where ``name`` is none of these. Raises UserError where the hub does not give it.
    """
    downloads = [b.download_folder for b in BACKBONES.values() if b.download_folder is not None]
    found = next((folder for download in downloads if (folder := download(name)) is not None), name)
    return storage.local_folder(found) if read_folder_stage(found) is not None else None


def load_folder_stage(folder: str, stage: FolderStage) -> nn.Module:
    """Returns the network of a stage that `read_folder_stage` found, on the CPU; UserError for unfit weights."""
    load = find_backbone(backbone_name(stage.model)).load_folder
    assert load is not None
    model: nn.Module = load(folder, stage.model)
    return model


def write_folder_stage(
    folder: str,
    model: Denoiser,
    diffusion: Mapping[str, Any],
    sampling: Mapping[str, Any],
    parts: Mapping[str, Any],
) -> None:
    """Writes a stage in the folder layout of the library that its network is of; UserError where it is of none.

    The arguments are those of `Backbone.write_folder`.
    """
    name = backbone_name(model.config)
    write = find_backbone(name).write_folder
    if write is None:
        able = ", ".join(name for name, backbone in BACKBONES.items() if backbone.write_folder is not None)
        raise UserError(f"a network of backbone {name} has no layout of another library; only {able} has one")
    write(folder, model, diffusion, sampling, parts)


def build_denoiser(config: DenoiserConfig) -> nn.Module:
    """Returns a fresh network (a `Denoiser`) with weights from torch's global generator."""
    model: nn.Module = find_backbone(backbone_name(config)).build(config)
    return model


def count_parameters(config: DenoiserConfig) -> int:
    """Returns the number of parameters of a network, without allocating them."""
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_denoiser(config).parameters())
