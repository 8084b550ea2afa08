"""The wrapper of diffusers' UNet2DConditionModel as an entry of `train.models.backbones.BACKBONES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dataprep.io.hub import HUB_PREFIX, WantedFiles, download_model
from dataprep.io.pipeline_folder import PIPELINE_FILE
from train.models.base import Backbone
from train.models.diffusers_unet.config import SUPPORTED_CONDITIONS, DiffusersUNetConfig
from train.models.diffusers_unet.folder_config import NOISING, SCHEDULER, UNET, read_folder_config
from train.models.diffusers_unet.presets import PRESETS

if TYPE_CHECKING:
    from train.models.diffusers_unet.network import DiffusersUNet

TEXT_ENCODER = "text_encoder"
WANTED = WantedFiles(
    folders=(UNET, SCHEDULER, NOISING, TEXT_ENCODER, "tokenizer"),
    weights=(UNET, TEXT_ENCODER),
    half=True,  # networks compute in float32 or bfloat16 all the same
    needed=(PIPELINE_FILE, UNET),
)


def build_diffusers_unet(config: DiffusersUNetConfig) -> DiffusersUNet:
    """Returns a fresh network; imports torch and diffusers on call."""
    from train.models.diffusers_unet.network import DiffusersUNet

    return DiffusersUNet(config)


def load_diffusers_unet(folder: str, config: DiffusersUNetConfig) -> DiffusersUNet:
    """Returns the network of a folder in diffusers' layout; imports torch and diffusers on call."""
    from train.models.diffusers_unet.folder_weights import load_folder_network

    return load_folder_network(folder, config)


def download_diffusers_unet(name: str) -> str | None:
    """Returns the folder of a stage on the hub, downloaded on first use; None where ``name`` is not ``hf://...``."""
    return download_model(name, WANTED) if name.startswith(HUB_PREFIX) else None


def write_diffusers_unet(
    folder: str,
    network: DiffusersUNet,
    diffusion: Mapping[str, Any],
    sampling: Mapping[str, Any],
    parts: Mapping[str, Any],
) -> None:
    """Writes a stage in diffusers' layout; imports torch and diffusers on call."""
    from train.models.diffusers_unet.folder_export import write_folder

    write_folder(folder, network, diffusion, sampling, parts)


DIFFUSERS_UNET = Backbone(
    DiffusersUNetConfig,
    PRESETS,
    build_diffusers_unet,
    SUPPORTED_CONDITIONS,
    read_folder=read_folder_config,
    load_folder=load_diffusers_unet,
    download_folder=download_diffusers_unet,
    write_folder=write_diffusers_unet,
)
