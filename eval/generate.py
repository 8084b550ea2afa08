"""One stage of a cascade on one batch: noise to images, under a caption, a low-resolution image and an edit.

Shape legend: B batch, C channels, H W height and width, L caption tokens, D text width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eval.settings import SamplingConfig, StageEntry
from train.diffusion.guidance import Denoiser, Interval, guided_denoiser
from train.diffusion.inpainting import repaint
from train.diffusion.noise import sample_noise
from train.diffusion.objective import DiffusionConfig, augment_lowres, upsample
from train.diffusion.samplers import sampler_named, sampling_log_snrs
from train.diffusion.schedules import add_noise
from train.models.unet import UNet

START, AUGMENT, FIRST_STEP = 0, 1, 2  # what a sample's noise is drawn for, within one stage


@dataclass(frozen=True)
class Stage:
    """A loaded stage."""

    entry: StageEntry
    model: UNet
    diffusion: DiffusionConfig


class Text(NamedTuple):
    """Encoded captions: float32 (B, L, D), padded with zeros, and the bool mask (B, L) of what is no padding."""

    tokens_BLD: Tensor
    mask_BL: Tensor


class Edit(NamedTuple):
    """A given image at the stage's size, float (1, C, H, W) in [-1, 1]; and where to draw anew, bool (1, 1, H, W)."""

    image: Tensor
    hidden: Tensor | None = None


class Inputs(NamedTuple):
    """What a stage draws a batch from. ``lowres_BCHW`` is the image of the stage below at its own size, in [-1, 1]."""

    text: Text
    negative: Text | None = None
    lowres_BCHW: Tensor | None = None
    edit: Edit | None = None


def sample_stage(
    stage: Stage,
    settings: SamplingConfig,
    inputs: Inputs,
    seeds: Sequence[Sequence[int]],
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Runs one stage on a batch: images (B, C, H, W) float32 in [-1, 1].

    ``size`` is (height, width), by default the stage's resolution. Row i's noise is a function of ``seeds[i]`` alone.
    An edit without a hidden part starts from its image noised to time ``strength``, in that share of the steps (SDEdit,
    Meng et al. 2022); with one it is drawn by RePaint, whose own ancestral steps take the sampler's place.
    """
    device, edit = inputs.text.tokens_BLD.device, inputs.edit
    height, width = size or (stage.entry.resolution,) * 2
    shape = (stage.model.config.image_channels, height, width)

    def noise(number: int) -> Tensor:
        return sample_noise([(*numbers, number) for numbers in seeds], shape, device)

    extra: tuple[Tensor, ...] = ()
    if inputs.lowres_BCHW is not None:
        level = min(settings.lowres_level, stage.diffusion.lowres_max_level)  # never one that training did not show
        level_B = torch.full((len(seeds),), level, device=device)
        resized_BCHW = upsample(inputs.lowres_BCHW, (height, width))
        extra = augment_lowres(resized_BCHW, level_B, noise(AUGMENT), stage.diffusion)
    denoise = _denoiser(stage, settings, inputs, extra)
    start = settings.strength if edit else 1.0
    steps = max(1, round(settings.steps * start))
    log_snrs = sampling_log_snrs(stage.diffusion.log_snr, steps, settings.spacing, start)
    x_BCHW = noise(START)
    if edit and start < 1:
        x_BCHW = add_noise(edit.image.expand_as(x_BCHW), x_BCHW, log_snrs[:1].to(x_BCHW))
    step_noise = lambda step: noise(FIRST_STEP + step)  # noqa: E731
    if edit and edit.hidden is not None:
        known_BCHW = edit.image.expand_as(x_BCHW)
        x_BCHW = repaint(denoise, x_BCHW, log_snrs, step_noise, known_BCHW, edit.hidden, settings.resample)
    else:
        x_BCHW = sampler_named(settings.sampler)(denoise, x_BCHW, log_snrs, step_noise)
    return x_BCHW.clamp(-1, 1)


def _denoiser(stage: Stage, settings: SamplingConfig, inputs: Inputs, extra: Sequence[Tensor]) -> Denoiser:
    """The stage's guided denoiser; ``extra`` is the low-resolution input and its noise level."""
    text, negative, batch = inputs.text, inputs.negative, inputs.text.tokens_BLD.shape[0]

    def model(x_BCHW: Tensor, log_snr_B: Tensor, keep_B: Tensor) -> Tensor:
        copies = x_BCHW.shape[0] // batch
        if copies == 1:
            tokens, mask = text
        elif negative is None:
            tokens, mask = (torch.cat([part] * copies) for part in text)
        else:  # the second half is not without text: it has the negative prompt's
            tokens, mask = _beside(text, negative)
            keep_B = torch.ones_like(keep_B)
        rest = [torch.cat([part] * copies) for part in extra]
        # On a GPU in bf16, which its matrix units are made for; the sampler's own steps stay fp32.
        with torch.autocast(x_BCHW.device.type, torch.bfloat16, enabled=x_BCHW.device.type == "cuda"):
            output: Tensor = stage.model(x_BCHW, log_snr_B, tokens, mask, keep_B, *rest)
        return output.float()

    # Less time is less noise, so a higher log-SNR.
    high, low = stage.diffusion.log_snr(torch.tensor(settings.guidance_interval)).tolist()
    return guided_denoiser(
        model,
        stage.diffusion.prediction,
        settings.guidance,
        settings.threshold,
        settings.percentile,
        Interval(low, high),
        settings.guidance_rescale,
    )


def _beside(text: Text, other: Text) -> Text:
    """Both batches in one, padded to the longer."""
    longest = max(text.mask_BL.shape[1], other.mask_BL.shape[1])
    parts = []
    for tokens_BLD, mask_BL in (text, other):
        more = longest - mask_BL.shape[1]
        parts.append(
            (torch.nn.functional.pad(tokens_BLD, (0, 0, 0, more)), torch.nn.functional.pad(mask_BL, (0, more)))
        )
    return Text(*(torch.cat(pair) for pair in zip(*parts, strict=True)))


def pad_text(texts: Sequence[np.ndarray], device: torch.device | str = "cpu") -> Text:
    """Arrays (L_i, D) -> float32 (B, L, D) padded with zeros to the longest, and the bool mask (B, L)."""
    longest = max(1, *(len(text) for text in texts)) if texts else 1
    text_BLD = torch.zeros(len(texts), longest, texts[0].shape[1])
    mask_BL = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        text_BLD[row, : len(text)] = torch.from_numpy(np.ascontiguousarray(text, dtype=np.float32))
        mask_BL[row, : len(text)] = True
    return Text(text_BLD.to(device), mask_BL.to(device))


def prompt_number(prompt: str) -> int:
    """A prompt as a 64-bit number, so that two prompts of one call do not share their noise."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
