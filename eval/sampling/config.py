"""Config of a cascade (``cascade.json``) and of the sampler of each stage. Light: loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from dataprep.io.config import Config
from dataprep.io.errors import UserError
from dataprep.io.storage import exists, read_json, write_json
from dataprep.text.config import EncoderDtype
from eval.captioning.config import ExpandConfig
from train.diffusion.config import GuidanceConfig, SamplerName, StepSpacing
from train.models.distilled import Distilled

CASCADE_FILE = "cascade.json"


class SamplingConfig(GuidanceConfig):
    """Sampler settings of one stage."""

    sampler: SamplerName = Field(default="dpmpp_2m", description="name of the sampler")
    steps: int = Field(default=20, ge=1, le=10000, description="network evaluations (guided: on twice the batch)")
    spacing: StepSpacing = Field(
        default="time",
        description="steps evenly in time or log_snr, or karras; leading, linspace: steps of a discrete schedule",
    )
    timesteps: tuple[int, ...] | None = Field(
        default=None, strict=False, description="the steps of a discrete schedule by number, falling to 0; not `steps`"
    )
    log_snrs: tuple[float, ...] | None = Field(
        default=None,
        strict=False,
        description="noise levels of the evaluations, rising log-SNRs; not `steps` and `spacing`",
    )
    autoguidance: bool = Field(
        default=True, description="guide away from the stage's weaker network, if it has one, in place of no caption"
    )
    learned_variance: bool = Field(
        default=True,
        description="of ddpm: use the variance that the network learned, if any; false: the posterior's",
    )
    lowres_level: float = Field(default=0.1, ge=0, le=1, description="noise added to the low-resolution input")
    strength: float = Field(
        default=1.0, gt=0, le=1, description="of image-to-image: time to start from; 1: from pure noise"
    )
    temperature: float = Field(
        default=1.0, ge=0, description="of a refinement stage: randomness of the codes; 0: the likeliest"
    )
    tile: int | None = Field(
        default=None,
        ge=1,
        description="sides of the overlapping tiles that the network gets, for less memory; None: whole images",
    )
    resample: int = Field(default=4, ge=1, description="of inpainting: repetitions of each step")
    candidates: int = Field(
        default=2,
        ge=1,
        description="of a prior: embeddings drawn per image, of which CLIP takes the best for the caption",
    )

    @model_validator(mode="after")
    def _check_timesteps(self) -> Self:
        given = self.timesteps
        if given is not None and (not given or given[-1] != 0 or any(a <= b for a, b in pairwise(given))):
            raise ValueError(f"timesteps {list(given)} do not fall to 0; give steps such as [999, 500, 0]")
        return self

    @model_validator(mode="after")
    def _check_log_snrs(self) -> Self:
        given = self.log_snrs
        if given is not None and (not given or any(a >= b for a, b in pairwise(given))):
            raise ValueError(f"log_snrs {list(given)} do not rise; give noise levels such as [-20, -2, 1]")
        if given is not None and self.timesteps is not None:
            raise ValueError(f"log_snrs and timesteps {list(self.timesteps)} are two lists of one thing; give one")
        return self

    def count_evaluations(self) -> int:
        """Returns how often a sampler evaluates the network from pure noise."""
        given = self.log_snrs or self.timesteps
        return self.steps if given is None else len(given)


class FitConfig(Config):
    """Noise levels of stages, fitted to them once they are trained; how many is `sample.stages.<name>.steps`."""

    stages: tuple[str, ...] = Field(strict=False, min_length=1, description="cascade stages to fit levels to")
    samples: int = Field(
        256, ge=1, description="held-out captions whose trajectories are measured, as far as there are"
    )
    levels: int = Field(48, ge=2, le=1000, description="evaluations of a trajectory, of which some levels are taken")
    batch_size: int = Field(16, ge=1, description="trajectories at a time; all their points are in memory")


class StageEntry(Config):
    """One stage of the cascade."""

    name: str = Field(description="such as base or sr64")
    resolution: int = Field(ge=1, description="height and width of its images")
    low_resolution: int | None = Field(
        default=None, ge=1, description="height and width of its input image; None: the base stage"
    )
    path: str = Field(description="its folder, relative to the cascade's")
    guide: str | None = Field(
        default=None, description="folder of a weaker network of the same kind, which guidance goes away from"
    )
    text: bool = Field(default=True, description="whether it reads the caption; false: it was trained without")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="default sampler settings")
    distilled: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="sampler settings that the stage was distilled to, and that cannot be others",
    )


class CascadeConfig(Config):
    """Content of ``cascade.json``."""

    prior: StageEntry | None = Field(
        default=None, description="what predicts the CLIP embedding of an image from its caption; one pixel"
    )
    stages: list[StageEntry] = Field(description="from the base upwards")
    encoder: str = Field(description="text encoder: folder relative to the cascade's, or a hub name")
    max_length: int = Field(default=256, ge=1, description="maximum tokens per caption, as in training")
    encoder_dtype: EncoderDtype = Field(
        default="auto",
        description="precision of the text encoder, as in training; auto: bfloat16 on GPUs, float32 on CPUs",
    )
    encoder_pad: bool = Field(default=False, description="text with the encoder's output at padding, as in training")
    encoder_lowercase: bool = Field(default=False, description="prompts in lower case, as in training")
    clip: str | None = Field(default=None, description="CLIP that ranks samples: folder or open_clip name; None: none")
    clip_pretrained: str | None = Field(default=None, description="open_clip tag or weights file, for `clip`")
    watermark: str | None = Field(default=None, description="text of the invisible watermark; None: no watermark")
    expand: ExpandConfig | None = Field(
        default=None, description="language model that writes prompts out before they are drawn; None: none"
    )

    def entries(self) -> list[StageEntry]:
        """Returns the prior, if there is one, and the stages."""
        return [*([] if self.prior is None else [self.prior]), *self.stages]

    def with_entries(self, change: Callable[[StageEntry], StageEntry]) -> Self:
        """Returns the config with every entry changed."""
        prior = None if self.prior is None else change(self.prior)
        return self.model_copy(update={"prior": prior, "stages": [change(stage) for stage in self.stages]})

    @model_validator(mode="after")
    def _check_chain(self) -> Self:
        if not self.stages:
            raise ValueError("stages is empty; a cascade needs a base stage")
        before = None
        for stage in self.stages:
            if stage.low_resolution != before:
                raise ValueError(f"stage {stage.name}: low_resolution is {stage.low_resolution}; it must be {before}")
            before = stage.resolution
        return self


def check_same_process(what: str, stage: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raises UserError where another network has learned another process than a stage; both are JSON by name."""
    for key in ("prediction", "schedule"):
        if other.get(key) != stage.get(key):
            raise UserError(
                f"{what}: has diffusion.{key} {other.get(key)}, the stage {stage.get(key)}; name a network of the same"
            )


def fix_sampling(sampling: SamplingConfig, distilled: Distilled | None) -> dict[str, Any]:
    """Returns `StageEntry.sampling` and `StageEntry.distilled` of a stage: with what it was distilled to, if it was."""
    if distilled is None:
        return {"sampling": sampling}
    values = sampling.model_dump() | {"spacing": "time", "timesteps": None} | dict(distilled.sampling)
    return {"sampling": SamplingConfig(**values), "distilled": (*distilled.sampling, "spacing", "timesteps")}


def read_cascade(folder: str | Path) -> CascadeConfig:
    """Reads ``cascade.json``; its paths stay relative. Raises UserError for a missing or invalid file."""
    path = str(Path(folder) / CASCADE_FILE)
    if not exists(path):
        raise UserError(f"cascade {folder}: has no {CASCADE_FILE}; name a folder that `imagen-ray export` wrote")
    try:
        return CascadeConfig(**read_json(path))
    except (ValidationError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}; export again") from error


def write_cascade(folder: str | Path, config: CascadeConfig) -> None:
    """Writes ``cascade.json``."""
    write_json(str(Path(folder) / CASCADE_FILE), config.model_dump(mode="json"))


def resolve_paths(config: CascadeConfig, folder: str | Path) -> CascadeConfig:
    """Returns the config with the paths below ``folder`` made whole. Hub names and open_clip tags stay as they are."""

    def resolve(name: str | None) -> str | None:
        return str(Path(folder) / name) if name and (Path(folder) / name).exists() else name

    def place(entry: StageEntry) -> StageEntry:
        return entry.model_copy(update={"path": str(Path(folder) / entry.path), "guide": resolve(entry.guide)})

    config = config.with_entries(place)
    names = {key: resolve(getattr(config, key)) for key in ("encoder", "clip", "clip_pretrained")}
    return config.model_copy(update=names)
