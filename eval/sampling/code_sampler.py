"""A refinement stage on one batch: from the low-resolution image and the caption to codes, and from these to the image.

Shape legend: B batch, C channels, H W height and width, K codes, h w height and width in codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from eval.sampling.config import SamplingConfig
from eval.sampling.stage_sampler import (
    AUGMENT,
    FIRST_STEP,
    START,
    LoadedStage,
    LowresInput,
    SamplerInputs,
    StageEdit,
    call_in_parts,
    concat_prompts,
    noise_lowres,
)
from train.diffusion.noise import sample_noise
from train.models.base import Conditions
from train.models.refiner.masking import lowest
from train.models.refiner.parallel_decoding import decode_codes
from train.models.refiner.refiner import Refiner


def sample_codes(
    stage: LoadedStage,
    settings: SamplingConfig,
    inputs: SamplerInputs,
    seeds: Sequence[Sequence[int]],
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Samples a batch with a refinement stage, as `eval.sampling.stage_sampler.sample_stage` does with another.

    Of the settings ``steps``, ``guidance``, ``temperature``, ``lowres_level`` and ``strength`` count. An edit without a
    mask hides a random share ``strength`` of the image's codes. One with a mask hides those of which it touches any
    pixel.
    """
    device, edit = inputs.text.tokens_BLD.device, inputs.edit
    model = cast(Refiner, stage.model)
    assert model.autoencoder is not None, "a stage holds its autoencoder"
    height, width = size or (stage.entry.resolution,) * 2
    side, count = model.config.autoencoder.stride(), model.config.autoencoder.codes
    shape = (height // side, width // side)

    def draw(number: int) -> Tensor:
        normal_Bhw = sample_noise([(*numbers, FIRST_STEP + number) for numbers in seeds], shape, device)
        return torch.special.ndtr(normal_Bhw).clamp(1e-7, 1 - 1e-7)

    channels = (model.config.image_channels, height, width)
    noise_BCHW = sample_noise([(*numbers, AUGMENT) for numbers in seeds], channels, device)
    lowres = noise_lowres(stage, settings, inputs, noise_BCHW, (height, width))
    codes_Bhw = torch.zeros(len(seeds), *shape, dtype=torch.int64, device=device)
    hidden_Bhw, rounds = torch.ones_like(codes_Bhw, dtype=torch.bool), settings.steps
    if edit is not None:
        codes_Bhw = model.autoencoder.encode(edit.image).expand_as(codes_Bhw)
        order_Bhw = sample_noise([(*numbers, START) for numbers in seeds], shape, device)
        hidden_Bhw = hide_edit(edit, order_Bhw, side, settings.strength)
        rounds = max(1, round(rounds * (1.0 if edit.hidden is not None else settings.strength)))

    def predict(shown_Bhw: Tensor, ratio_B: Tensor) -> Tensor:
        return guided_logits(stage, settings.guidance, inputs, lowres, shown_Bhw, ratio_B)

    codes_Bhw = decode_codes(predict, codes_Bhw, hidden_Bhw, count, rounds, settings.temperature, draw)
    image_BCHW = model.autoencoder.decode(codes_Bhw).float().clamp(-1, 1)
    if edit is not None and edit.hidden is not None:
        image_BCHW = torch.where(edit.hidden, image_BCHW, edit.image)
    return image_BCHW


def guided_logits(
    stage: LoadedStage, guidance: float, inputs: SamplerInputs, lowres: LowresInput, shown_Bhw: Tensor, ratio_B: Tensor
) -> Tensor:
    """Returns logits (B, K, h, w) with classifier-free guidance: u + guidance (c - u), as of a denoiser's output.

    ``u`` are those for the negative prompt, or without a caption. A stage that was trained without text gets none.
    """
    text, negative, batch = inputs.text, inputs.negative, len(shown_Bhw)
    copies = 1 if guidance == 1 else 2
    prompts = text if copies == 1 else concat_prompts([text, negative or text])
    kept_B = None
    if not stage.entry.text:
        kept_B = torch.zeros(copies * batch, dtype=torch.bool, device=shown_Bhw.device)
    elif copies == 2 and negative is None:
        kept_B = torch.arange(2 * batch, device=shown_Bhw.device) < batch
    rest = {name: torch.cat([part] * copies) for name, part in lowres.items()}
    conditions = Conditions(prompts.tokens_BLD, prompts.mask_BL, kept_B)._replace(**rest)
    shown_Bhw, ratio_B = torch.cat([shown_Bhw] * copies), torch.cat([ratio_B] * copies)
    pixels = rest["lowres_BCHW"][0, 0].numel()
    # On a GPU the network runs in bf16.
    with torch.autocast(shown_Bhw.device.type, torch.bfloat16, enabled=shown_Bhw.device.type == "cuda"):
        logits = call_in_parts(stage.model, shown_Bhw, ratio_B, conditions, pixels)
    if copies == 1:
        return logits
    conditional, other = logits.chunk(2)
    return torch.lerp(other, conditional, guidance)


def hide_edit(edit: StageEdit, order_Bhw: Tensor, side: int, strength: float) -> Tensor:
    """Returns which codes of an edited image are drawn anew, bool (B, h, w); ``side``: pixels of a code."""
    if edit.hidden is not None:
        touched_Bhw = functional.max_pool2d(edit.hidden.float(), side)[:, 0] > 0
        return touched_Bhw.expand_as(order_Bhw)
    hidden = max(1, round(strength * order_Bhw[0].numel()))
    return lowest(order_Bhw, torch.full((len(order_Bhw),), hidden, device=order_Bhw.device))
