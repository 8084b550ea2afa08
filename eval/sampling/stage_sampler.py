"""One stage of a cascade on one batch: from noise to images, given captions, low-resolution images and an edit.

Shape legend: B batch, C channels, H W height and width, L caption tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eval.sampling.config import SamplingConfig, StageEntry
from train.diffusion.config import DiffusionConfig
from train.diffusion.guidance import GuidedDenoiser, LogSnrInterval
from train.diffusion.inpainting import repaint
from train.diffusion.noise import sample_noise
from train.diffusion.objective import augment_lowres, evaluation_log_snrs, log_snr_at_time, upsample_lowres
from train.diffusion.samplers import find_sampler
from train.diffusion.schedules import add_noise, split_variance
from train.models.base import Conditions, Denoiser

START, AUGMENT, FIRST_STEP = 0, 1, 2  # last part of a noise seed: its purpose within one stage


@dataclass(frozen=True)
class LoadedStage:
    """A stage in memory."""

    entry: StageEntry
    model: Denoiser
    diffusion: DiffusionConfig


class EncodedPrompts(NamedTuple):
    """Encoded captions: float32 (B, L, D), zero-padded, and the bool mask (B, L), False at padding."""

    tokens_BLD: Tensor
    mask_BL: Tensor


class StageEdit(NamedTuple):
    """A given image at the stage's size, float (1, C, H, W) in [-1, 1]; ``hidden``: bool (1, 1, H, W), regenerated."""

    image: Tensor
    hidden: Tensor | None = None


class SamplerInputs(NamedTuple):
    """Conditions of a batch. ``lowres_BCHW`` is the image of the stage below at its own size, in [-1, 1]."""

    text: EncodedPrompts
    negative: EncodedPrompts | None = None
    lowres_BCHW: Tensor | None = None
    edit: StageEdit | None = None


def sample_stage(
    stage: LoadedStage,
    settings: SamplingConfig,
    inputs: SamplerInputs,
    seeds: Sequence[Sequence[int]],
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Samples a batch with one stage: float32 (B, C, H, W) in [-1, 1].

    ``size`` is (height, width), by default the stage's resolution. The noise of image i is a function of ``seeds[i]``.
    An edit without a mask starts from its image noised to time ``strength``, with that share of the steps (SDEdit, Meng
    et al. 2022). One with a mask uses RePaint, whose ancestral steps replace the sampler.
    """
    device, edit = inputs.text.tokens_BLD.device, inputs.edit
    height, width = size or (stage.entry.resolution,) * 2
    shape = (stage.model.config.image_channels, height, width)

    def noise(number: int) -> Tensor:
        return sample_noise([(*numbers, number) for numbers in seeds], shape, device)

    lowres: dict[str, Tensor] = {}
    if inputs.lowres_BCHW is not None:
        level = min(settings.lowres_level, stage.diffusion.lowres_max_level)  # never above the training range
        level_B = torch.full((len(seeds),), level, device=device)
        resized_BCHW = upsample_lowres(inputs.lowres_BCHW, (height, width), stage.diffusion.lowres_align_corners)
        noised_BCHW, log_snr_B = augment_lowres(resized_BCHW, level_B, noise(AUGMENT), stage.diffusion)
        lowres = {"lowres_BCHW": noised_BCHW, "lowres_log_snr_B": log_snr_B}
    denoise = _denoiser(stage, settings, inputs, lowres)
    start = settings.strength if edit else 1.0
    log_snrs = evaluation_log_snrs(stage.diffusion, settings.steps, settings.spacing, start, settings.timesteps)
    x_BCHW = noise(START)
    if edit and start < 1:
        x_BCHW = add_noise(edit.image.expand_as(x_BCHW), x_BCHW, log_snrs[:1].to(x_BCHW))
    step_noise = lambda step: noise(FIRST_STEP + step)  # noqa: E731
    if edit and edit.hidden is not None:
        known_BCHW = edit.image.expand_as(x_BCHW)
        x_BCHW = repaint(denoise, x_BCHW, log_snrs, step_noise, known_BCHW, edit.hidden, settings.resample)
    else:
        x_BCHW = find_sampler(settings.sampler)(denoise, x_BCHW, log_snrs, step_noise)
    return x_BCHW.clamp(-1, 1)


def _denoiser(
    stage: LoadedStage, settings: SamplingConfig, inputs: SamplerInputs, lowres: Mapping[str, Tensor]
) -> GuidedDenoiser:
    """Returns the stage's guided denoiser; ``lowres``: the low-resolution input and its noise level."""
    text, negative, batch = inputs.text, inputs.negative, inputs.text.tokens_BLD.shape[0]

    def model(x_BCHW: Tensor, log_snr_B: Tensor, keep_B: Tensor) -> Tensor:
        copies = x_BCHW.shape[0] // batch
        if copies == 1:
            tokens, mask = text
        elif negative is None:
            tokens, mask = (torch.cat([part] * copies) for part in text)
        else:  # the second half is not unconditional: it has the negative prompt
            tokens, mask = _concat_prompts(text, negative)
            keep_B = torch.ones_like(keep_B)
        rest = {name: torch.cat([part] * copies) for name, part in lowres.items()}
        # On a GPU the network runs in bf16; the sampler's own steps stay in fp32.
        with torch.autocast(x_BCHW.device.type, torch.bfloat16, enabled=x_BCHW.device.type == "cuda"):
            output = stage.model(x_BCHW, log_snr_B, Conditions(tokens, mask, keep_B)._replace(**rest))
        if not settings.learned_variance:
            output, _ = split_variance(output, x_BCHW)
        return output.float()

    # Less time is less noise, so a higher log-SNR.
    high, low = log_snr_at_time(stage.diffusion, torch.tensor(settings.guidance_interval)).tolist()
    return GuidedDenoiser(
        model,
        stage.diffusion.prediction,
        settings.guidance,
        settings.threshold,
        settings.percentile,
        LogSnrInterval(low, high),
        settings.guidance_rescale,
        settings.threshold_max,
    )


def _concat_prompts(text: EncodedPrompts, other: EncodedPrompts) -> EncodedPrompts:
    """Concatenates two batches, padded to the longer."""
    longest = max(text.mask_BL.shape[1], other.mask_BL.shape[1])
    parts = []
    for tokens_BLD, mask_BL in (text, other):
        more = longest - mask_BL.shape[1]
        parts.append(
            (torch.nn.functional.pad(tokens_BLD, (0, 0, 0, more)), torch.nn.functional.pad(mask_BL, (0, more)))
        )
    return EncodedPrompts(*(torch.cat(pair) for pair in zip(*parts, strict=True)))


def pad_text(texts: Sequence[np.ndarray], device: torch.device | str = "cpu") -> EncodedPrompts:
    """Pads arrays (L_i, D) to the longest."""
    longest = max(1, *(len(text) for text in texts)) if texts else 1
    text_BLD = torch.zeros(len(texts), longest, texts[0].shape[1])
    mask_BL = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        text_BLD[row, : len(text)] = torch.from_numpy(np.ascontiguousarray(text, dtype=np.float32))
        mask_BL[row, : len(text)] = True
    return EncodedPrompts(text_BLD.to(device), mask_BL.to(device))
