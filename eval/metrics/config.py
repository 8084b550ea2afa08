"""Config of the evaluation: reference images, feature spaces, sweep of sampler settings. Light: loads no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from dataprep.io.config import Config
from eval.metrics.judges.config import JudgeConfig
from eval.sampling.config import SamplingConfig
from train.diffusion.config import SamplerName

OWN_CLIP, INCEPTION = "clip", "inception"  # values of `FeaturesConfig.model` besides open_clip's names
SUBSAMPLE = 5000  # images of a set that metrics over pairs of images use at most


class FeaturesConfig(Config):
    """A feature space to measure distances in."""

    model: str = Field(
        OWN_CLIP,
        description="clip: the run's own; inception; an open_clip name; an exported folder; or a local folder of "
        "transformers, such as DINOv2's",
    )
    pretrained: str | None = Field(None, description="open_clip tag, or the local file of the weights")

    @property
    def key(self) -> str:
        """Name of the space in metrics.json, as in ``fd_<key>``."""
        return re.sub(r"[^a-z0-9]+", "_", Path(self.model).name.lower()).strip("_")


class SweepConfig(Config):
    """Sampler settings of one stage to evaluate, all else as it is sampled: guidance weights, and steps per sampler."""

    stage: str | None = Field(None, description="cascade stage whose sampler is swept and judged; default: the base")
    prompts: int = Field(64, ge=2, description="judged prompts to sample at each setting")
    guidance: tuple[float, ...] = Field((), strict=False, description="guidance weights")
    steps: tuple[int, ...] = Field((), strict=False, description="network evaluations")
    samplers: tuple[SamplerName, ...] = Field((), strict=False, description="samplers, each at every one of `steps`")


class MemorisationConfig(Config):
    """The search for training images that samples are near copies of."""

    threshold: float = Field(
        0.06, gt=0, le=1, description="greatest difference of a tile, as a share of the pixels' range, of a near copy"
    )
    neighbours: int = Field(16, ge=1, description="nearest images by features of which pixels are compared")
    queries: int = Field(1000, ge=1, description="samples to look up, at most, and as many held-out images")


class LikelihoodConfig(Config):
    """How the likelihood of held-out images is measured, of every cascade stage (docs/diffusion.md)."""

    images: int = Field(64, ge=1, description="validation images")
    batch_size: int = Field(16, ge=1, description="images per network evaluation")
    levels: int = Field(8, ge=1, description="parts of the range of log-SNR, each sampled once per image for the bound")
    steps: int = Field(64, ge=0, description="steps of the ODE, of two evaluations with gradient each; 0: no ODE")
    most_log_snr: float | None = Field(
        None, gt=-5, description="log-SNR of the decoded latent, at most the schedule's; less suits prediction x0"
    )
    probes: int = Field(1, ge=1, description="random directions per image and step that estimate the ODE's divergence")


class EvaluateConfig(Config):
    """What is measured besides CLIP score and composition."""

    reference: str | None = Field(
        None, description="real images: a folder of images or of tars; default: the run's validation images"
    )
    features: tuple[FeaturesConfig, ...] = Field(
        (FeaturesConfig(),), strict=False, description="feature spaces of FD, KID, precision, recall, density, coverage"
    )
    subsample: int = Field(
        SUBSAMPLE, ge=10, description="images per set, at most, of the metrics that compare pairs of images"
    )
    sweep: SweepConfig | None = Field(None, description="also evaluate other settings of a stage's sampler")
    judges: tuple[JudgeConfig, ...] = Field(
        (), strict=False, description="models from local weights that score samples or check what they show"
    )
    memorisation: MemorisationConfig | None = Field(
        None, description="also look for near copies of training images among the samples; reads every training image"
    )
    likelihood: LikelihoodConfig | None = Field(
        None, description="also measure bits per dimension of validation images; {} takes the defaults"
    )

    @model_validator(mode="after")
    def _check_judges(self) -> EvaluateConfig:
        kinds = [judge.kind for judge in self.judges]
        if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
            raise ValueError(f"judges: {twice} is named twice; leave one out")
        return self


@dataclass(frozen=True)
class SweepPoint:
    """One setting of a sweep: the key that is swept, and the sampler settings."""

    swept: str
    settings: SamplingConfig


def make_sweep_points(config: SweepConfig, base: SamplingConfig) -> list[SweepPoint]:
    """Returns every setting of the sweep: ``base`` with another guidance, or with another sampler and steps."""
    points = [SweepPoint("guidance", _replace(base, guidance=weight)) for weight in config.guidance]
    if config.steps or config.samplers:
        swept = "steps" if config.steps else "sampler"
        for sampler in config.samplers or (base.sampler,):
            steps = config.steps or (base.steps,)
            levels = None if config.steps else base.log_snrs  # which would be in place of the steps
            points += [
                SweepPoint(swept, _replace(base, sampler=sampler, steps=count, log_snrs=levels)) for count in steps
            ]
    return points


def _replace(base: SamplingConfig, **values: object) -> SamplingConfig:
    return SamplingConfig(**(base.model_dump() | values))
