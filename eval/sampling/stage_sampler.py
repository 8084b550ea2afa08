"""One stage of a cascade on one batch: from noise to images, given captions, low-resolution images and an edit.

Shape legend: B batch, C channels, H W height and width, L caption tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eval.sampling.attention import AttentionRecorder
from eval.sampling.config import SamplingConfig, StageEntry
from eval.sampling.tiles import call_in_tiles
from train.diffusion.config import DiffusionConfig
from train.diffusion.guidance import GuidedDenoiser, guide_model
from train.diffusion.inpainting import repaint
from train.diffusion.noise import sample_noise
from train.diffusion.objective import augment_lowres, evaluation_log_snrs, upsample_lowres
from train.diffusion.samplers import find_sampler
from train.diffusion.schedules import add_noise, network_input, split_variance
from train.models.base import Conditions, Denoiser, TextEncodingDenoiser

START, AUGMENT, FIRST_STEP = 0, 1, 2  # last part of a noise seed: its purpose within one stage
# Pixels that the network gets at once: 4 images of 1024 px, about 5 GiB of the paper's last stage.
PIXELS = 2**22
LowresInput = Mapping[str, Tensor]  # fields of `Conditions`: the low-resolution image, and the log-SNR of its noise


@dataclass(frozen=True)
class LoadedStage:
    """A stage in memory."""

    entry: StageEntry
    model: Denoiser
    diffusion: DiffusionConfig
    digest: str = ""  # of its weights, as stored; "": not stored
    guide: Denoiser | None = None  # a weaker network to guide away from, in place of no caption
    guide_digest: str = ""

    def networks(self) -> tuple[Denoiser, ...]:
        """Returns the stage's network and the weaker one, if it has it."""
        return (self.model,) if self.guide is None else (self.model, self.guide)


class EncodedPrompts(NamedTuple):
    """Encoded captions: float32 (B, L, D), zero-padded; bool mask (B, L), False at padding; None if there is none."""

    tokens_BLD: Tensor
    mask_BL: Tensor | None


class StageEdit(NamedTuple):
    """A given image at the stage's size, float (1, C, H, W) in [-1, 1]; ``hidden``: bool (1, 1, H, W), regenerated."""

    image: Tensor
    hidden: Tensor | None = None


class SamplerInputs(NamedTuple):
    """Conditions of a batch. ``lowres_BCHW`` is the image of the stage below at its own size, in [-1, 1].

    ``vectors`` are one per image, float32 (B, V) by field of `Conditions`; guidance goes away from
    ``negative_vectors``, or from none.
    """

    text: EncodedPrompts
    negative: EncodedPrompts | None = None
    lowres_BCHW: Tensor | None = None
    edit: StageEdit | None = None
    vectors: Mapping[str, Tensor] = MappingProxyType({})
    negative_vectors: Mapping[str, Tensor] = MappingProxyType({})
    watch: AttentionRecorder | None = None  # entered; told of every evaluation


def sample_stage(
    stage: LoadedStage,
    settings: SamplingConfig,
    inputs: SamplerInputs,
    seeds: Sequence[Sequence[int]],
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Samples a batch with one stage: float32 (B, C, H, W) in [-1, 1]; see `run_sampler`."""
    return run_sampler(stage, settings, inputs, seeds, size).clamp(-1, 1)


def run_sampler(
    stage: LoadedStage,
    settings: SamplingConfig,
    inputs: SamplerInputs,
    seeds: Sequence[Sequence[int]],
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Samples a batch with one stage: float32 (B, C, H, W), not clipped.

    ``size`` is (height, width), by default the stage's resolution. The noise of image i is a function of ``seeds[i]``.
    The network gets at most `PIXELS` pixels at a time, so that memory does not grow with the batch.

    An edit without a mask starts from its image noised to time ``strength``, with that share of the steps (SDEdit, Meng
    et al. 2022). One with a mask uses RePaint, whose ancestral steps replace the sampler.
    """
    edit = inputs.edit
    noise = _noise_of(stage, inputs, seeds, size)
    denoise, x_BCHW = begin_sampling(stage, settings, inputs, seeds, size)
    start = settings.strength if edit else 1.0
    log_snrs = evaluation_log_snrs(
        stage.diffusion, settings.steps, settings.spacing, start, settings.timesteps, settings.log_snrs
    )
    if edit and start < 1:
        x_BCHW = add_noise(edit.image.expand_as(x_BCHW), x_BCHW, log_snrs[:1].to(x_BCHW))
    step_noise = lambda step: noise(FIRST_STEP + step)  # noqa: E731
    if edit and edit.hidden is not None:
        known_BCHW = edit.image.expand_as(x_BCHW)
        x_BCHW = repaint(denoise, x_BCHW, log_snrs, step_noise, known_BCHW, edit.hidden, settings.resample)
    else:
        x_BCHW = find_sampler(settings.sampler)(denoise, x_BCHW, log_snrs, step_noise)
    return x_BCHW


def noise_lowres(
    stage: LoadedStage, settings: SamplingConfig, inputs: SamplerInputs, noise_BCHW: Tensor, size: tuple[int, int]
) -> LowresInput:
    """Returns the low-resolution input of a super-resolution stage, resized to ``size`` and noised, and its log-SNR."""
    assert inputs.lowres_BCHW is not None, "a super-resolution stage gets an image"
    level = min(settings.lowres_level, stage.diffusion.lowres_max_level)  # never above the training range
    level_B = torch.full((len(noise_BCHW),), level, device=noise_BCHW.device)
    resized_BCHW = upsample_lowres(inputs.lowres_BCHW, size, stage.diffusion.lowres_align_corners)
    noised_BCHW, log_snr_B = augment_lowres(resized_BCHW, level_B, noise_BCHW, stage.diffusion)
    return {"lowres_BCHW": noised_BCHW, "lowres_log_snr_B": log_snr_B}


def begin_sampling(
    stage: LoadedStage,
    settings: SamplingConfig,
    inputs: SamplerInputs,
    seeds: Sequence[Sequence[int]],
    size: tuple[int, int] | None = None,
) -> tuple[GuidedDenoiser, Tensor]:
    """Returns the denoiser of a batch of `sample_stage`, and the noise (B, C, H, W) where it starts."""
    noise = _noise_of(stage, inputs, seeds, size)
    start_BCHW = noise(START)
    lowres: LowresInput = {}
    if inputs.lowres_BCHW is not None:
        height, width = start_BCHW.shape[2:]
        lowres = noise_lowres(stage, settings, inputs, noise(AUGMENT), (height, width))
    return stage_denoiser(stage, settings, inputs, lowres), start_BCHW


def _noise_of(
    stage: LoadedStage, inputs: SamplerInputs, seeds: Sequence[Sequence[int]], size: tuple[int, int] | None
) -> Callable[[int], Tensor]:
    """Returns the noise (B, C, H, W) of a batch by its number."""
    height, width = size or (stage.entry.resolution,) * 2
    shape, device = (stage.model.config.image_channels, height, width), inputs.text.tokens_BLD.device
    return lambda number: sample_noise([(*numbers, number) for numbers in seeds], shape, device)


def stage_denoiser(
    stage: LoadedStage, settings: SamplingConfig, inputs: SamplerInputs, lowres: LowresInput
) -> GuidedDenoiser:
    """Returns the stage's guided denoiser; ``lowres``: the low-resolution input and its noise level."""
    text, negative, batch = inputs.text, inputs.negative, inputs.text.tokens_BLD.shape[0]
    guide = stage.guide if settings.autoguidance else None
    known: dict[tuple[Denoiser, int], Conditions] = {}  # by network and copies of the batch: the same at every step

    def conditions_of(network: Denoiser, prompts: Sequence[EncodedPrompts], keep_B: Tensor | None) -> Conditions:
        copies = len(prompts)
        if (network, copies) not in known:
            rest = {name: torch.cat([part] * copies) for name, part in lowres.items()}
            for name, vector_BV in inputs.vectors.items():
                other_BV = inputs.negative_vectors.get(name, torch.zeros_like(vector_BV))
                rest[name] = torch.cat([vector_BV, other_BV][:copies])
            tokens_BLD, mask_BL = prompts[0] if copies == 1 else concat_prompts(prompts)
            if not stage.entry.text:
                keep_B = tokens_BLD.new_zeros(len(tokens_BLD), dtype=torch.bool)
            found = Conditions(tokens_BLD, mask_BL, keep_B)._replace(**rest)
            known[network, copies] = network.encode_text(found) if isinstance(network, TextEncodingDenoiser) else found
        return known[network, copies]

    def ask(
        network: Denoiser, x_BCHW: Tensor, log_snr_B: Tensor, *prompts: EncodedPrompts, keep_B: Tensor | None = None
    ) -> Tensor:
        # On a GPU the network runs in bf16; the sampler's own steps stay in fp32.
        with torch.autocast(x_BCHW.device.type, torch.bfloat16, enabled=x_BCHW.device.type == "cuda"):
            seen_BCHW = network_input(x_BCHW, log_snr_B, stage.diffusion.schedule)
            output = call_on_images(
                network, seen_BCHW, log_snr_B, conditions_of(network, prompts, keep_B), settings.tile
            )
        return (output if settings.learned_variance else split_variance(output, x_BCHW)[0]).float()

    def model(x_BCHW: Tensor, log_snr_B: Tensor, keep_B: Tensor) -> Tensor:
        if len(x_BCHW) == batch:  # every row has its caption
            return ask(stage.model, x_BCHW, log_snr_B, text)
        if guide is not None:  # the second half is not unconditional: it is the weaker network's
            networks, parts = (stage.model, guide), zip(x_BCHW.split(batch), log_snr_B.split(batch), strict=True)
            return torch.cat([ask(network, *part, text) for network, part in zip(networks, parts, strict=True)])
        if negative is not None:  # it has the negative prompt
            return ask(stage.model, x_BCHW, log_snr_B, text, negative)
        return ask(stage.model, x_BCHW, log_snr_B, text, text, keep_B=keep_B)

    def watched_model(x_BCHW: Tensor, log_snr_B: Tensor, keep_B: Tensor) -> Tensor:
        output = model(x_BCHW, log_snr_B, keep_B)
        if inputs.watch is not None:
            inputs.watch.end_evaluation(float(log_snr_B[0]), batch)
        return output

    return guide_model(watched_model, stage.diffusion, settings)


def call_on_images(
    network: Denoiser, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions, tile: int | None
) -> Tensor:
    """Returns the network's output (B, C, H, W), float32; of images larger than ``tile``, if given, tile by tile."""

    def call(part_BCHW: Tensor, given: Conditions) -> Tensor:
        return call_in_parts(network, part_BCHW, log_snr_B, given, part_BCHW[0, 0].numel())

    if tile is None or tile >= max(x_BCHW.shape[2:]):
        return call(x_BCHW, conditions)
    return call_in_tiles(call, x_BCHW, conditions, tile, network.config.size_multiple())


def call_in_parts(model: Denoiser, x: Tensor, log_snr_B: Tensor, conditions: Conditions, pixels: int) -> Tensor:
    """Returns the network's output, float32; of a large batch part by part, with at most `PIXELS` pixels or one row.

    ``x``: what goes into the network; ``pixels``: those of an image.
    """
    rows, whole = max(1, PIXELS // pixels), len(x)
    outputs = []
    for start in range(0, whole, rows):
        part = slice(start, start + rows)
        given = Conditions(*(value if value is None else value[part] for value in conditions))
        outputs.append(model(x[part], log_snr_B[part], given).float())
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def concat_prompts(batches: Sequence[EncodedPrompts]) -> EncodedPrompts:
    """Concatenates batches, padded to the longest."""
    longest = max(batch.tokens_BLD.shape[1] for batch in batches)
    if all(batch.mask_BL is None and batch.tokens_BLD.shape[1] == longest for batch in batches):
        return EncodedPrompts(torch.cat([batch.tokens_BLD for batch in batches]), None)
    tokens, masks = [], []
    for tokens_BLD, mask_BL in batches:
        more = longest - tokens_BLD.shape[1]
        mask_BL = tokens_BLD.new_ones(tokens_BLD.shape[:2], dtype=torch.bool) if mask_BL is None else mask_BL
        tokens.append(torch.nn.functional.pad(tokens_BLD, (0, 0, 0, more)))
        masks.append(torch.nn.functional.pad(mask_BL, (0, more)))
    return EncodedPrompts(torch.cat(tokens), torch.cat(masks))


def pad_text(texts: Sequence[np.ndarray], device: torch.device | str = "cpu") -> EncodedPrompts:
    """Pads arrays (L_i, D) to the longest; the mask is None where all are equally long."""
    longest = max(1, *(len(text) for text in texts)) if texts else 1
    text_BLD = torch.zeros(len(texts), longest, texts[0].shape[1])
    mask_BL = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        text_BLD[row, : len(text)] = torch.from_numpy(np.ascontiguousarray(text, dtype=np.float32))
        mask_BL[row, : len(text)] = True
    return EncodedPrompts(text_BLD.to(device), None if bool(mask_BL.all()) else mask_BL.to(device))
