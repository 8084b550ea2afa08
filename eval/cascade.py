"""Generates images from text with a trained cascade; needs neither Ray nor DeepSpeed.

    images = Cascade.from_pretrained("export")("two small red circles left of a blue square", num=4, seed=1).images

A cascade is a folder with ``cascade.json`` (`CascadeConfig`), one folder a stage as `train.models.export` writes it,
and the text encoder's folder. Shape legend: B batch, C channels, H W height and width, L caption tokens, D text width.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from dataprep.schema import Config, UserError
from dataprep.storage import exists, read_json, write_json
from dataprep.text import TextEncoder
from train.diffusion.guidance import Threshold, guided_denoiser
from train.diffusion.noise import sample_noise
from train.diffusion.objective import DiffusionConfig, augment_lowres, to_pixels, upsample
from train.diffusion.samplers import SamplerName, sampler_named, sampling_log_snrs
from train.models.export import load_stage
from train.models.unet import UNet

CASCADE_FILE = "cascade.json"
START, AUGMENT, FIRST_STEP = 0, 1, 2  # what a sample's noise is drawn for, within one stage
Value = TypeVar("Value", int, float)


class Encoder(Protocol):
    """What turns captions into token embeddings."""

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """One float32 array (L_i, D) a caption."""
        ...


class SamplingConfig(Config):
    """How a stage samples unless a call says otherwise."""

    sampler: SamplerName = Field(default="dpmpp_2m", description="ddpm, ddim or dpmpp_2m")
    steps: int = Field(default=20, ge=1, le=10000, description="network evaluations (each of two halves when guided)")
    guidance: float = Field(default=3.0, ge=0, description="classifier-free guidance weight; 1: none")
    threshold: Threshold = Field(default="dynamic", description="none, static or dynamic")
    percentile: float = Field(default=0.995, gt=0, le=1, description="percentile of dynamic thresholding")
    lowres_level: float = Field(default=0.1, ge=0, le=1, description="noise put on the low-resolution input")


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
    clip: str | None = Field(default=None, description="CLIP that ranks samples: folder or open_clip name; None: none")

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


@dataclass(frozen=True)
class Stage:
    """A loaded stage."""

    entry: StageEntry
    model: UNet
    diffusion: DiffusionConfig


@dataclass(frozen=True)
class Samples:
    """Generated images with the prompt and the index (0 to num - 1) of each, prompt by prompt."""

    images: list[Image.Image]
    prompts: list[str]
    indices: list[int]
    by_stage: dict[str, list[Image.Image]]  # the same of every stage that ran; the last one's are `images`


class Cascade:
    """A text encoder and the stages from the base upwards. Immutable; calls keep no state."""

    def __init__(self, stages: Sequence[Stage], encoder: Encoder, device: str | torch.device = "cpu") -> None:
        self.stages, self.encoder, self.device = tuple(stages), encoder, torch.device(device)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> Cascade:
        """Loads an exported cascade; UserError where a part is missing, broken or was never trained."""
        folder = Path(folder)
        config = read_cascade(folder)
        stages = [_load(folder, entry, device) for entry in config.stages]
        encoder = TextEncoder.from_folder(
            resolve(folder, config.encoder), max_length=config.max_length, device=str(device)
        )
        for stage in stages:
            if encoder.dim != stage.model.config.text_dim:
                raise UserError(
                    f"encoder {config.encoder}: width {encoder.dim}, stage {stage.entry.name} was trained on width "
                    f"{stage.model.config.text_dim}; name the encoder that it was trained with"
                )
        return cls(stages, encoder, device)

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str],
        num: int = 1,
        seed: int = 0,
        guidance: float | Mapping[str, float] | None = None,
        steps: int | Mapping[str, int] | None = None,
        stop_at: str | None = None,
        batch_size: int = 16,
    ) -> Samples:
        """Generates ``num`` images a prompt.

        The image of (prompt, seed, index) is the same in any batch, up to the rounding of floating-point sums.

        Args:
            prompts: one or several.
            num: images a prompt.
            seed: another seed, other images.
            guidance, steps: for all stages, or by the stage's name; None: the cascade's defaults.
            stop_at: the name of the last stage to run; None: all.
            batch_size: images at a time.

        Raises:
            UserError: an unknown stage name, no prompt, or a number out of range.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        stages = self._until(stop_at)
        self._check(prompts, num, batch_size, guidance, steps)
        texts = dict(zip(dict.fromkeys(prompts), self.encoder.encode(list(dict.fromkeys(prompts))), strict=True))
        jobs = [(prompt, index) for prompt in prompts for index in range(num)]
        by_stage: dict[str, list[Image.Image]] = {stage.entry.name: [] for stage in stages}
        for batch in _chunks(jobs, batch_size):
            text_BLD, mask_BL = pad_text([texts[prompt] for prompt, _ in batch], self.device)
            seeds = [(seed, prompt_number(prompt), index) for prompt, index in batch]
            x_BCHW: Tensor | None = None
            for depth, stage in enumerate(stages):
                settings = _settings(stage.entry, guidance, steps)
                numbers = [(*numbers, depth) for numbers in seeds]
                x_BCHW = sample_stage(stage, settings, text_BLD, mask_BL, x_BCHW, numbers)
                by_stage[stage.entry.name] += [Image.fromarray(pixels) for pixels in to_pixels(x_BCHW).cpu().numpy()]
        images = by_stage[stages[-1].entry.name]
        return Samples(images, [prompt for prompt, _ in jobs], [index for _, index in jobs], by_stage)

    def _until(self, stop_at: str | None) -> tuple[Stage, ...]:
        names = [stage.entry.name for stage in self.stages]
        if stop_at is None:
            return self.stages
        if stop_at not in names:
            raise UserError(f"stop_at {stop_at!r} is not a stage; take one of {', '.join(names)}")
        return self.stages[: names.index(stop_at) + 1]

    def _check(self, prompts: Sequence[str], num: int, batch_size: int, *by_stage: object) -> None:
        if not prompts:
            raise UserError("prompts is empty; give one or more")
        for name, value in (("num", num), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name} {value} is too small; take 1 or more")
        names = {stage.entry.name for stage in self.stages}
        for values in by_stage:
            if isinstance(values, Mapping) and (unknown := sorted(set(values) - names)):
                raise UserError(f"stage {unknown[0]!r} is unknown; take one of {', '.join(sorted(names))}")


def sample_stage(
    stage: Stage,
    settings: SamplingConfig,
    text_BLD: Tensor,
    mask_BL: Tensor,
    lowres_BCHW: Tensor | None,
    seeds: Sequence[Sequence[int]],
) -> Tensor:
    """Runs one stage on a batch: images (B, C, H, W) float32 in [-1, 1].

    ``lowres_BCHW`` is the stage below's image at its own size, float in [-1, 1]; None for the base. Row i's noise is a
    function of ``seeds[i]`` alone.
    """
    device, size, channels = text_BLD.device, stage.entry.resolution, stage.model.config.image_channels
    shape = (channels, size, size)

    def noise(number: int) -> Tensor:
        return sample_noise([(*numbers, number) for numbers in seeds], shape, device)

    extra: list[Tensor] = []
    if lowres_BCHW is not None:
        level_B = torch.full((len(seeds),), settings.lowres_level, device=device)
        extra = list(augment_lowres(upsample(lowres_BCHW, size), level_B, noise(AUGMENT), stage.diffusion))

    def model(x_BCHW: Tensor, log_snr_B: Tensor, keep_B: Tensor) -> Tensor:
        copies = x_BCHW.shape[0] // text_BLD.shape[0]
        text, mask, *rest = (torch.cat([part] * copies) for part in (text_BLD, mask_BL, *extra))
        output: Tensor = stage.model(x_BCHW, log_snr_B, text, mask, keep_B, *rest)
        return output

    denoise = guided_denoiser(
        model, stage.diffusion.prediction, settings.guidance, settings.threshold, settings.percentile
    )
    log_snrs = sampling_log_snrs(stage.diffusion.log_snr, settings.steps)
    x_BCHW = sampler_named(settings.sampler)(denoise, noise(START), log_snrs, lambda step: noise(FIRST_STEP + step))
    return x_BCHW.clamp(-1, 1)


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


def pad_text(texts: Sequence[np.ndarray], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Arrays (L_i, D) -> float32 (B, L, D) padded with zeros to the longest, and the bool mask (B, L)."""
    longest = max(1, *(len(text) for text in texts)) if texts else 1
    text_BLD = torch.zeros(len(texts), longest, texts[0].shape[1])
    mask_BL = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        text_BLD[row, : len(text)] = torch.from_numpy(np.ascontiguousarray(text, dtype=np.float32))
        mask_BL[row, : len(text)] = True
    return text_BLD.to(device), mask_BL.to(device)


def prompt_number(prompt: str) -> int:
    """A prompt as a 64-bit number, so that two prompts of one call do not share their noise."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")


def _load(folder: Path, entry: StageEntry, device: str | torch.device) -> Stage:
    model, settings = load_stage(folder / entry.path, device)
    try:
        diffusion = DiffusionConfig(**settings["diffusion"])
    except ValidationError as error:
        raise UserError(
            f"stage {entry.name}: diffusion settings: {' '.join(str(error).split())}; export again"
        ) from error
    if model.config.lowres != (entry.low_resolution is not None):
        raise UserError(
            f"stage {entry.name}: low_resolution {entry.low_resolution} does not fit its U-Net; export again"
        )
    if entry.resolution % model.config.size_multiple():
        raise UserError(
            f"stage {entry.name}: resolution {entry.resolution} is not a multiple of {model.config.size_multiple()}"
        )
    return Stage(entry, model, diffusion)


def _settings(entry: StageEntry, guidance: Any, steps: Any) -> SamplingConfig:
    """The stage's sampling defaults with what the call asks for."""
    changes: dict[str, Any] = {}
    if (weight := _of_stage(guidance, entry.name)) is not None:
        changes["guidance"] = float(weight)
    if (count := _of_stage(steps, entry.name)) is not None:
        changes["steps"] = count
    try:
        return SamplingConfig(**(entry.sampling.model_dump() | changes))
    except ValidationError as error:
        reason = error.errors()[0]
        raise UserError(f"{reason['loc'][0]} {reason['input']}: {reason['msg']}") from error


def _of_stage(value: Value | Mapping[str, Value] | None, name: str) -> Value | None:
    return value.get(name) if isinstance(value, Mapping) else value


def _chunks(items: Sequence[tuple[str, int]], size: int) -> list[list[tuple[str, int]]]:
    iterator = iter(items)
    return list(iter(lambda: list(itertools.islice(iterator, size)), []))
