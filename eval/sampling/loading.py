"""Loads the parts of a cascade and checks that they fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import nn

from dataprep.io.device_settings import configure_device
from dataprep.io.errors import UserError
from dataprep.text.encoder import TextEncoder
from eval.sampling.config import CASCADE_FILE, CascadeConfig, StageEntry, check_same_process
from eval.sampling.stage_sampler import LoadedStage
from train.diffusion.config import DiffusionConfig
from train.models.backbones import backbone_name, find_backbone
from train.models.base import Denoiser, DenoiserConfig, PaddedTextDenoiser
from train.models.export import load_stage


def load_stages(config: CascadeConfig, device: str | torch.device, compiled: bool = False) -> list[LoadedStage]:
    """Loads every stage; ``compiled``: with torch.compile, whose first call of each size takes minutes.

    Raises UserError for one that is missing, was never trained or does not fit its entry.
    """
    configure_device(device)
    stages = [_load_entry(entry, device) for entry in config.stages]
    if compiled:
        for network in (network for stage in stages for network in stage.networks()):
            assert isinstance(network, nn.Module)
            network.compile()
    return stages


def load_prior(config: CascadeConfig, device: str | torch.device) -> LoadedStage | None:
    """Loads what predicts image embeddings, if the cascade has it; UserError as `load_stages`, and without a CLIP."""
    if config.prior is None:
        return None
    if config.clip is None:
        raise UserError(f"prior {config.prior.name}: works in the space of a CLIP; name it as clip in {CASCADE_FILE}")
    return _load_entry(config.prior, device)


def load_encoder(config: CascadeConfig, stages: Sequence[LoadedStage], device: str | torch.device) -> TextEncoder:
    """Loads the text encoder. Raises UserError for another width than the stages were trained on."""
    options = {"pad": config.encoder_pad, "lowercase": config.encoder_lowercase}
    encoder = TextEncoder.from_folder(config.encoder, config.encoder_dtype, config.max_length, str(device), **options)
    for stage in stages:
        if encoder.dim != stage.model.config.text_dim:
            raise UserError(
                f"encoder {config.encoder}: width {encoder.dim}, stage {stage.entry.name} was trained on width "
                f"{stage.model.config.text_dim}; name the encoder that it was trained with"
            )
        for network in stage.networks():
            _give_empty_text(config, stage.entry.name, network, encoder)
    return encoder


def _give_empty_text(config: CascadeConfig, stage: str, network: Denoiser, encoder: TextEncoder) -> None:
    """Gives a network that reads padding the text that stands for no prompt; UserError where prompts do not fit it."""
    tokens = network.config.caption_tokens()
    if tokens is None:
        return
    if not config.encoder_pad or encoder.max_length != tokens:
        raise UserError(
            f"stage {stage} reads {tokens} tokens with padding; set encoder_pad: true and max_length: "
            f"{tokens} in {CASCADE_FILE} (embed.pad and embed.max_length of a run)"
        )
    cast(PaddedTextDenoiser, network).set_empty_text(torch.from_numpy(encoder.encode([""])[0]))


def _load_entry(entry: StageEntry, device: str | torch.device) -> LoadedStage:
    model, settings = load_stage(entry.path, device)
    try:
        diffusion = DiffusionConfig(**settings["diffusion"])
    except ValidationError as error:
        raise UserError(
            f"stage {entry.name}: diffusion settings: {' '.join(str(error).split())}; export again"
        ) from error
    if model.config.lowres != (entry.low_resolution is not None):
        raise UserError(
            f"stage {entry.name}: low_resolution {entry.low_resolution} does not fit its network; export again"
        )
    if entry.resolution % model.config.size_multiple():
        raise UserError(
            f"stage {entry.name}: resolution {entry.resolution} is not a multiple of {model.config.size_multiple()}"
        )
    stage = LoadedStage(entry, model, diffusion, settings.get("digest", ""))
    return stage if entry.guide is None else _add_guide(stage, entry.guide, settings["diffusion"], device)


def _add_guide(stage: LoadedStage, folder: str, diffusion: dict[str, Any], device: str | torch.device) -> LoadedStage:
    """Loads the weaker network of a stage; UserError where it does not take and give what the stage's does."""
    what, (guide, settings) = f"stage {stage.entry.name}: guide {folder}", load_stage(folder, device)
    check_same_process(what, diffusion, settings["diffusion"])
    ours = _describe_network(stage.model.config)
    for key, theirs in _describe_network(guide.config).items():
        if theirs != ours[key]:
            raise UserError(f"{what}: has {key} {theirs}, the stage {ours[key]}; name another network")
    if stage.entry.resolution % (step := guide.config.size_multiple()):
        raise UserError(
            f"{what}: takes sizes that are multiples of {step}, the stage has {stage.entry.resolution}; name another "
            "network"
        )
    return replace(stage, guide=guide, guide_digest=settings.get("digest", ""))


def _describe_network(config: DenoiserConfig) -> dict[str, Any]:
    """Returns what a network has to share with the one that it guides."""
    keys = ("text_dim", "lowres", "image_channels", "image_embedding_dim")
    return {
        "task": find_backbone(backbone_name(config)).task,
        **{key: getattr(config, key) for key in keys},
        "output_channels": config.output_channels(),
    }
