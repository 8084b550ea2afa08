"""How a cascade is described and sampled: ``cascade.json``, and the settings of a stage's sampler."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from dataprep.schema import Config, UserError
from dataprep.storage import exists, read_json, write_json
from train.diffusion.guidance import Threshold
from train.diffusion.samplers import SamplerName, Spacing

CASCADE_FILE = "cascade.json"


class SamplingConfig(Config):
    """How a stage samples unless a call says otherwise."""

    sampler: SamplerName = Field(default="dpmpp_2m", description="ddpm, ddim, dpmpp_2m, dpmpp_2m_sde or unipc")
    steps: int = Field(default=20, ge=1, le=10000, description="network evaluations (each of two halves when guided)")
    spacing: Spacing = Field(default="time", description="steps evenly in time or log_snr, or as karras has them")
    guidance: float = Field(default=3.0, ge=0, description="classifier-free guidance weight; 1: none")
    guidance_rescale: float = Field(default=0.0, ge=0, le=1, description="how much of guidance's contrast to take back")
    guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0), strict=False, description="times between which guidance is on; 0: clean, 1: noise"
    )
    threshold: Threshold = Field(default="dynamic", description="none, static or dynamic")
    percentile: float = Field(default=0.995, gt=0, le=1, description="percentile of dynamic thresholding")
    lowres_level: float = Field(default=0.1, ge=0, le=1, description="noise put on the low-resolution input")
    strength: float = Field(default=1.0, gt=0, le=1, description="of a given image: 1 starts from noise alone")
    resample: int = Field(default=4, ge=1, description="times each step is taken when a hidden part is drawn")

    @model_validator(mode="after")
    def _interval(self) -> Self:
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance_interval {[low, high]} is no interval of [0, 1]; give low <= high")
        return self


class StageEntry(Config):
    """One stage of the cascade."""

    name: str = Field(description="such as base or sr64")
    resolution: int = Field(ge=1, description="height and width of its images")
    low_resolution: int | None = Field(default=None, ge=1, description="of its input image; None: the base stage")
    path: str = Field(description="its folder, relative to the cascade's")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="defaults of sampling")


class CascadeConfig(Config):
    """The content of ``cascade.json``."""

    stages: list[StageEntry] = Field(description="from the base upwards")
    encoder: str = Field(description="text encoder: folder relative to the cascade's, or a hub name")
    max_length: int = Field(default=256, ge=1, description="tokens of a caption at most, as in training")
    encoder_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="its arithmetic, as in training"
    )
    clip: str | None = Field(default=None, description="CLIP that ranks samples: folder or open_clip name; None: none")
    clip_pretrained: str | None = Field(default=None, description="open_clip tag or weights file, for `clip`")
    watermark: str | None = Field(default=None, description="text whose invisible mark images get; None: no mark")

    @model_validator(mode="after")
    def _chain(self) -> Self:
        if not self.stages:
            raise ValueError("stages is empty; a cascade needs a base stage")
        before = None
        for stage in self.stages:
            if stage.low_resolution != before:
                raise ValueError(f"stage {stage.name}: low_resolution is {stage.low_resolution}; it must be {before}")
            before = stage.resolution
        return self


def read_cascade(folder: str | Path) -> CascadeConfig:
    """Reads ``cascade.json``; UserError where it is missing or says something that cannot be."""
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


def resolve(folder: Path, name: str) -> str:
    """A part of the cascade: the path below ``folder`` where there is one, else the name as it is (a hub name)."""
    return str(folder / name) if (folder / name).exists() else name


def stage_settings(entry: StageEntry, changes: Mapping[str, Any]) -> SamplingConfig:
    """The stage's sampling defaults with ``changes``: a value a key, or stage name -> value; None changes nothing.

    Raises UserError for an unknown key, naming the nearest, and for a value that cannot be.
    """
    values = entry.sampling.model_dump()
    for key, value in changes.items():
        if key not in values:
            near = difflib.get_close_matches(key, values, 1)
            hint = f"did you mean {near[0]}?" if near else f"take one of {', '.join(values)}"
            raise UserError(f"setting {key!r} is unknown; {hint}")
        chosen = value.get(entry.name) if isinstance(value, Mapping) else value
        if chosen is not None:
            values[key] = float(chosen) if isinstance(values[key], float) and isinstance(chosen, int) else chosen
    try:
        return SamplingConfig(**values)
    except ValidationError as error:
        reason = error.errors()[0]
        named = f"{reason['loc'][0]} {reason['input']}: " if reason["loc"] else ""
        raise UserError(f"{named}{reason['msg']}") from error
