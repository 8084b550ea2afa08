"""From finished training stages to a cascade that samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dataprep.io import storage
from dataprep.io.errors import UserError
from eval.sampling.config import (
    CASCADE_FILE,
    CascadeConfig,
    SamplingConfig,
    StageEntry,
    fix_sampling,
    read_cascade,
    resolve_paths,
)
from eval.sampling.folder_cascade import folder_cascade
from pipeline.stages.clip import read_clip_spec
from pipeline.stages.guides import find_guides
from pipeline.stages.model_files import find_encoder
from pipeline.stages.text_encoder import encoder_location
from pipeline.stages.training_stages import read_stages, read_training
from pipeline.store.artifact import Artifact
from pipeline.store.run import RUN_FILE, Run
from train.initial_weights.base import read_settings
from train.models.backbones import find_stage_folder
from train.models.distilled import read_distilled
from train.tasks.cascade_config import is_sampled
from train.tasks.diffusion_config import DiffusionStageConfig
from train.tasks.prior_config import PriorStageConfig, PriorTrainingConfig

if TYPE_CHECKING:
    from eval.sampling.cascade import Cascade


def trained_cascade(
    trained: Mapping[str, Artifact],
    sampling: Mapping[str, SamplingConfig],
    encoder: Artifact,
    clip: Artifact | None,
    guides: Mapping[str, str] | None = None,
    **more: Any,
) -> CascadeConfig:
    """Returns the cascade of finished training stages by name; those that are no part of it are left out.

    Args:
        sampling: sampler settings by stage name; stages that it lacks have the defaults, and a distilled one those that
            it was distilled to.
        guides: weaker networks by stage name, as `find_guides` takes them.
        more: other fields of `CascadeConfig`.
    """
    members = {name: read_training(artifact.manifest) for name, artifact in trained.items()}
    weaker = find_guides(guides or {})

    def entry(name: str, config: DiffusionStageConfig | PriorStageConfig) -> StageEntry:
        distilled = read_distilled(read_settings(trained[name].path("export"), "config.json"))
        return StageEntry(
            name=name,
            resolution=config.resolution,
            low_resolution=config.low_resolution,
            path=trained[name].path("export"),
            text=config.reads_text(),
            guide=weaker.get(name),
            **fix_sampling(sampling.get(name, SamplingConfig()), distilled),
        )

    priors = [entry(name, config) for name, config in members.items() if isinstance(config, PriorTrainingConfig)]
    stages = [entry(name, config) for name, config in read_stages(trained).items()]
    prior = priors[0] if priors else None
    return CascadeConfig(prior=prior, stages=stages, encoder=encoder_location(encoder), **describe_clip(clip), **more)


def describe_clip(clip: Artifact | None) -> dict[str, Any]:
    """Returns the fields of `CascadeConfig` that name a CLIP."""
    if clip is None:
        return {}
    spec = read_clip_spec(clip)
    return {"clip": spec["model"], "clip_pretrained": spec["pretrained"]}


def find_cascade(model: str, key: str) -> CascadeConfig:
    """Returns the cascade of a finished run, an exported folder or a base stage in diffusers' layout.

    Raises UserError, naming ``key``, where it is none of these.
    """
    if (folder := find_stage_folder(model)) is not None:
        return folder_cascade([folder])
    if storage.exists(storage.join(model, CASCADE_FILE)):
        return resolve_paths(read_cascade(model), storage.absolute(model))
    if not storage.exists(storage.join(model, RUN_FILE)):
        raise UserError(
            f"{key}={model}: neither a run nor an exported folder; make that model first (a run: `imagen-ray run` its "
            "config)"
        )
    run = Run(model)
    config, artifacts = run.record()["config"], run.artifacts()
    stages = [name for name, training in config["train"].items() if is_sampled(training)]
    missing = [name for name in ["encoder", *(f"train.{stage}" for stage in stages)] if name not in artifacts]
    if missing:
        raise UserError(f"{key}={model}: stage {missing[0]} is not finished there; `imagen-ray run` it first")
    trained = {name: artifacts[f"train.{name}"] for name in stages}
    sampling = {
        name: SamplingConfig.model_validate(values, strict=False) for name, values in config["sample"]["stages"].items()
    }
    embed = config["embed"]
    text = {"max_length": embed["max_length"], "encoder_dtype": embed["dtype"]}
    text |= {"encoder_pad": embed["pad"], "encoder_lowercase": embed["lowercase"]}
    clip, encoder = artifacts.get("clip"), find_encoder(artifacts)
    assert encoder is not None
    return trained_cascade(trained, sampling, encoder, clip, config["sample"]["guides"], **text)


def list_cascade_files(config: CascadeConfig) -> list[str]:
    """Returns the files of a cascade's prior and stages, and of its text encoder and CLIP if these are folders."""
    folders = [folder for entry in config.entries() for folder in (entry.path, entry.guide) if folder is not None]
    clip = [config.clip] if config.prior is not None and config.clip is not None else []
    folders += [name for name in (config.encoder, *clip) if storage.exists(name)]
    return [storage.join(folder, name) for folder in folders for name in sorted(storage.list_files(folder))]


def build_cascade(config: CascadeConfig, device: str = "cpu") -> Cascade:
    """Loads the cascade on ``device``; folders in object stores are copied to this machine first."""
    from eval.sampling.cascade import Cascade

    return Cascade.from_config(copy_parts_here(config), device)


def copy_parts_here(config: CascadeConfig) -> CascadeConfig:
    """Returns the cascade with folders in object stores replaced by copies on this machine."""

    def copy(entry: StageEntry) -> StageEntry:
        guide = storage.local_folder(entry.guide) if entry.guide else None
        return entry.model_copy(update={"path": storage.local_folder(entry.path), "guide": guide})

    config = config.with_entries(copy)
    clip = storage.local_folder(config.clip) if config.clip else None
    return config.model_copy(update={"encoder": storage.local_folder(config.encoder), "clip": clip})
