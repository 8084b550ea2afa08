"""Writes a network as a stage in diffusers' layout, which `folder_config` and diffusers' own pipelines read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataprep.io import storage
from dataprep.io.model_imports import import_diffusers
from train.beta_schedule import BetaSchedule
from train.models.diffusers_unet.folder_config import (
    BASE_CLASSES,
    INDEX_FILE,
    NETWORK_CLASS,
    NOISING,
    PREDICTIONS,
    SCHEDULER,
    SCHEDULER_CLASS,
    SR_CLASSES,
    UNET,
    DdpmSettings,
)
from train.models.diffusers_unet.network import DiffusersUNet

UNBOUNDED = 1e6  # sample_max_value where the dynamic threshold has no maximum
SPACINGS = ("leading", "linspace")


def write_folder(
    folder: str,
    network: DiffusersUNet,
    diffusion: Mapping[str, Any],
    sampling: Mapping[str, Any],
    parts: Mapping[str, Any],
) -> None:
    """Writes weights, configs and, last, the index to a local folder.

    Args:
        diffusion: settings of the diffusion process, as JSON by name.
        sampling: sampler settings, as JSON by name: prediction of the variance, threshold, spacing of the steps.
        parts: further entries of the index, such as ``{"text_encoder": ["transformers", "T5EncoderModel"]}``.
    """
    target = Path(folder)
    network.unet.save_pretrained(target / UNET)
    save_scheduler(target / SCHEDULER, scheduler_settings(network, diffusion, sampling))
    index: dict[str, Any] = {"_class_name": BASE_CLASSES[0], SCHEDULER: ["diffusers", SCHEDULER_CLASS]}
    if network.config.lowres:
        save_scheduler(target / NOISING, DdpmSettings(**_beta_keys(network.config.lowres_betas)))
        index |= {"_class_name": SR_CLASSES[0], NOISING: ["diffusers", SCHEDULER_CLASS]}
    index |= {"_diffusers_version": import_diffusers().__version__, UNET: ["diffusers", NETWORK_CLASS]}
    storage.write_json(str(target / INDEX_FILE), dict(sorted((index | dict(parts)).items())))


def scheduler_settings(
    network: DiffusersUNet, diffusion: Mapping[str, Any], sampling: Mapping[str, Any]
) -> DdpmSettings:
    """Returns the scheduler of a stage; inverts `folder_config.read_folder_config`."""
    learned = network.config.unet.out_channels == 6 and sampling["learned_variance"]
    dynamic = sampling["threshold"] == "dynamic"
    names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    settings: dict[str, Any] = {
        "variance_type": "learned_range" if learned else "fixed_small",
        "clip_sample": sampling["threshold"] != "none",
        "prediction_type": names[diffusion["prediction"]],
        "thresholding": dynamic,
        "dynamic_thresholding_ratio": sampling["percentile"],
        "sample_max_value": (sampling["threshold_max"] or UNBOUNDED) if dynamic else 1.0,
        "timestep_spacing": sampling["spacing"] if sampling["spacing"] in SPACINGS else SPACINGS[0],
    }
    return DdpmSettings(**_beta_keys(network.config.betas), **settings)


def save_scheduler(folder: Path, settings: DdpmSettings) -> None:
    """Writes scheduler_config.json, by diffusers itself."""
    import_diffusers().DDPMScheduler(**settings.model_dump()).save_pretrained(folder)


def _beta_keys(betas: BetaSchedule) -> dict[str, Any]:
    return {
        "num_train_timesteps": betas.steps,
        "beta_start": betas.start,
        "beta_end": betas.end,
        "beta_schedule": betas.kind,
        "trained_betas": None if betas.values is None else list(betas.values),
    }
