"""How a run is judged: against which pictures, in which feature spaces, and along which settings of its sampler."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from dataprep.schema import Config
from eval.distances import SUBSAMPLE
from eval.features import FeaturesConfig
from eval.settings import SamplingConfig
from train.diffusion.samplers import SamplerName


class SweepConfig(Config):
    """Settings of a stage's sampler to try, with everything else as it is sampled: guidance weights, and step counts by
    each of some samplers."""

    stage: str | None = Field(None, description="cascade stage whose sampler is swept and judged; default: the base")
    prompts: int = Field(64, ge=2, description="judged prompts to draw at each setting")
    guidance: tuple[float, ...] = Field((), strict=False, description="guidance weights")
    steps: tuple[int, ...] = Field((), strict=False, description="network evaluations")
    samplers: tuple[SamplerName, ...] = Field((), strict=False, description="samplers, each at every one of `steps`")


class EvaluateConfig(Config):
    """What the samples are measured by, besides CLIP score and composition."""

    reference: str | None = Field(
        None, description="real pictures: a folder of images or of tars; default: the run's validation images"
    )
    features: tuple[FeaturesConfig, ...] = Field(
        (FeaturesConfig(),), strict=False, description="feature spaces of FD, KID, precision, recall, density, coverage"
    )
    subsample: int = Field(SUBSAMPLE, ge=10, description="pictures of a set at most for what compares pairs of them")
    sweep: SweepConfig | None = Field(None, description="also judge other settings of a stage's sampler")


@dataclass(frozen=True)
class Point:
    """One setting of a sweep: which of its keys is swept, and the settings of the sampler there."""

    swept: str
    settings: SamplingConfig


def sweep_points(config: SweepConfig, base: SamplingConfig) -> list[Point]:
    """Every setting to try, ``base`` with one key replaced, or with sampler and steps."""
    points = [Point("guidance", _with(base, guidance=weight)) for weight in config.guidance]
    if config.steps or config.samplers:
        swept = "steps" if config.steps else "sampler"
        for sampler in config.samplers or (base.sampler,):
            points += [Point(swept, _with(base, sampler=sampler, steps=n)) for n in config.steps or (base.steps,)]
    return points


def _with(base: SamplingConfig, **values: object) -> SamplingConfig:
    return SamplingConfig(**(base.model_dump() | values))
