"""Samples the stages of a cascade one after the other, batch by batch.

Shape legend: B batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from PIL import Image
from torch import Tensor

from eval.sampling import image_editing
from eval.sampling.attention import AttentionMaps, AttentionRecorder
from eval.sampling.generators import generate
from eval.sampling.plan import SamplingPlan
from eval.sampling.prompts import hash_prompt
from eval.sampling.samples import Samples
from eval.sampling.stage_sampler import SamplerInputs, pad_text
from eval.sampling.watermark import add_watermark, can_carry
from train.diffusion.objective import to_pixels

SampleKey = tuple[str, int]  # prompt, index


def sample_plan(
    plan: SamplingPlan,
    keys: Sequence[SampleKey],
    batch_size: int,
    device: torch.device,
    watermark: str | None = None,
    embedding_NE: Tensor | None = None,
) -> Samples:
    """Samples one image per (prompt, index). The last stage's images get the watermark if they are large enough.

    ``embedding_NE``: an image embedding for each image, for the stages that take one.
    """
    last = plan.stages[-1].entry.name
    by_stage: dict[str, list[Image.Image]] = {stage.entry.name: [] for stage in plan.stages}
    attention: dict[str, list[AttentionMaps]] = {}
    for start in range(0, len(keys), batch_size):
        part = slice(start, start + batch_size)
        embedding_BE = None if embedding_NE is None else embedding_NE[part]
        for name, (x_BCHW, maps) in _sample_batch(plan, keys[part], device, embedding_BE).items():
            if maps is not None:
                attention.setdefault(name, []).extend(maps)
            pixels = list(to_pixels(x_BCHW).cpu().numpy())
            if watermark and name == last and can_carry(plan.size):
                pixels = [add_watermark(image_HWC, watermark) for image_HWC in pixels]
            by_stage[name] += [Image.fromarray(image_HWC) for image_HWC in pixels]
    prompts, indices = [prompt for prompt, _ in keys], [index for _, index in keys]
    return Samples(by_stage[last], prompts, indices, by_stage, attention=attention)


def _sample_batch(
    plan: SamplingPlan, keys: Sequence[SampleKey], device: torch.device, embedding_BE: Tensor | None
) -> dict[str, tuple[Tensor, list[AttentionMaps] | None]]:
    """Returns the images (B, C, H, W) in [-1, 1] of every stage, by its name, and where it looked, if recorded."""
    text = pad_text([plan.texts[prompt] for prompt, _ in keys], device)
    negative = None if plan.negative is None else pad_text([plan.negative] * len(keys), device)
    sampled: dict[str, tuple[Tensor, list[AttentionMaps] | None]] = {}
    x_BCHW, from_base = _first_input(plan, len(keys), device), plan.stages[0].entry.low_resolution is None
    for stage in plan.stages:
        name = stage.entry.name
        width, height = image_editing.stage_size(plan.stages, plan.size, stage.entry.resolution)
        edit = None
        if plan.image_HWC is not None and from_base:
            edit = image_editing.edit_at(plan.image_HWC, plan.mask_HW, (width, height), device)
        seeds = [
            (plan.seed, hash_prompt(prompt), 0 if plan.one_noise else index, plan.numbers[name])
            for prompt, index in keys
        ]
        vectors = {}
        if embedding_BE is not None and stage.model.config.image_embedding_dim:
            vectors = {"image_embedding_BE": embedding_BE}
        watch = AttentionRecorder(stage.model, (height, width)) if name in plan.watched else None
        inputs = SamplerInputs(text, negative, x_BCHW, edit, vectors, watch=watch)
        with watch or nullcontext():
            x_BCHW = generate(stage, plan.settings[name], inputs, seeds, (height, width))
        sampled[name] = x_BCHW, watch.collect([len(plan.texts[prompt]) for prompt, _ in keys]) if watch else None
    return sampled


def _first_input(plan: SamplingPlan, count: int, device: torch.device) -> Tensor | None:
    """Returns the given image as the input of a first stage that does super-resolution; None for a base."""
    low = plan.stages[0].entry.low_resolution
    if low is None or plan.image_HWC is None:
        return None
    small_HWC = image_editing.fit_image(plan.image_HWC, image_editing.stage_size(plan.stages, plan.size, low))
    return image_editing.to_tensor(small_HWC, device).expand(count, -1, -1, -1)
