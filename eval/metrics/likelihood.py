"""Bits per dimension of held-out images under a cascade stage: the variational bound, and the probability-flow ODE.

Shape legend: B batch, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.metrics.base import JudgedSamples, Metric
from eval.metrics.config import LikelihoodConfig
from eval.metrics.intervals import bootstrap_mean

if TYPE_CHECKING:
    from torch import Tensor

    from eval.sampling.stage_sampler import EncodedPrompts, LoadedStage
    from train.diffusion.guidance import PredictX0

AUGMENT, LATENT, PROBE, FIRST_LEVEL = 0, 1, 2, 3  # last part of a noise seed: its purpose
GOLDEN_RATIO = 0.6180339887498949
ImageBits = dict[str, float]  # part -> bits per dimension of one image


class Likelihood(Metric):
    """How many bits per pixel and channel a stage needs for an image that it has not seen, given what it is given."""

    title = "Likelihood"
    description = (
        "Bits per dimension of validation images, given their caption and small image. Bound: an upper bound, with its "
        "parts; ODE: the density of the deterministic sampler. Fewer is better."
    )

    def compute(self, judged: JudgedSamples) -> dict[str, Any]:
        """A value per stage and part, with its interval over images; empty if it was not requested."""
        return {
            f"{stage}: {part}": bootstrap_mean([image[part] for image in images])
            for stage, images in judged.likelihood.items()
            for part in images[0]
        }


def measure_likelihood(
    stage: LoadedStage,
    text: EncodedPrompts,
    x0_BCHW: Tensor,
    lowres_BCHW: Tensor | None,
    config: LikelihoodConfig,
    first: int = 0,
) -> list[ImageBits]:
    """Returns the bits of each image of a batch by part: bound, its parts, and ODE.

    Args:
        x0_BCHW: images in [-1, 1] at the stage's resolution.
        lowres_BCHW: the small images in [-1, 1], given without noise; None for a base stage.
        first: number of the first image, which its noise depends on.
    """
    import torch

    from train.diffusion.likelihood import (
        NATS_TO_BITS,
        bound_levels,
        diffusion_nats,
        latent_nats,
        noise_latent,
        ode_nats,
        prior_nats,
        reconstruction_nats,
    )
    from train.diffusion.noise import sample_noise
    from train.diffusion.schedules import add_noise

    numbers, shape, device = range(first, first + len(x0_BCHW)), x0_BCHW.shape[1:], x0_BCHW.device

    def noise(purpose: int) -> Tensor:
        return sample_noise([(0, number, purpose) for number in numbers], shape, device)

    denoise = _make_denoiser(stage, text, x0_BCHW, lowres_BCHW, noise(AUGMENT))
    levels, latent_noise = bound_levels(stage.diffusion), noise(LATENT)
    if config.most_log_snr is not None:
        levels = levels._replace(most=min(levels.most, config.most_log_snr))
    z0_BCHW = noise_latent(x0_BCHW, latent_noise, levels.most)
    with torch.no_grad():
        guess_BCHW = denoise(z0_BCHW, x0_BCHW.new_full((len(x0_BCHW),), levels.most))
        reconstruction_B = reconstruction_nats(x0_BCHW, guess_BCHW, levels.most)
        parts = {"prior": prior_nats(x0_BCHW, levels.least), "reconstruction": reconstruction_B}
        width = (levels.most - levels.least) / config.levels
        for number in range(config.levels):
            offset_B = torch.tensor([(image * GOLDEN_RATIO + number / config.levels) % 1 for image in numbers])
            at_B = (levels.least + (number + offset_B) * width).to(x0_BCHW)
            seen_BCHW = add_noise(x0_BCHW, noise(FIRST_LEVEL + number), at_B)
            low, high = levels.least + number * width, levels.least + (number + 1) * width
            name = f"log-SNR {low:.1f} to {high:.1f}"
            parts[name] = diffusion_nats(x0_BCHW, denoise(seen_BCHW, at_B), at_B, width)
    nats = {"bound": torch.stack(list(parts.values())).sum(0)}
    if config.steps:
        probes = [noise(-number - 1).sign() for number in range(config.probes)]
        latent_B = ode_nats(denoise, z0_BCHW, levels, config.steps, torch.stack(probes))
        nats["ODE"] = reconstruction_B + latent_B - latent_nats(latent_noise, levels.most)
    bits = {name: (nats_B * NATS_TO_BITS).tolist() for name, nats_B in (nats | parts).items()}
    return [{name: values[row] for name, values in bits.items()} for row in range(len(x0_BCHW))]


def _make_denoiser(
    stage: LoadedStage, text: EncodedPrompts, x0_BCHW: Tensor, lowres_BCHW: Tensor | None, noise_BCHW: Tensor
) -> PredictX0:
    """Returns the stage's denoiser as it is trained: no guidance, no threshold."""
    from eval.sampling.config import SamplingConfig
    from eval.sampling.stage_sampler import SamplerInputs, stage_denoiser
    from train.diffusion.objective import augment_lowres, upsample_lowres

    lowres: dict[str, Tensor] = {}
    if lowres_BCHW is not None:
        resized_BCHW = upsample_lowres(lowres_BCHW, (x0_BCHW.shape[2], x0_BCHW.shape[3]))
        level_B = x0_BCHW.new_zeros(len(x0_BCHW))
        noised_BCHW, log_snr_B = augment_lowres(resized_BCHW, level_B, noise_BCHW, stage.diffusion)
        lowres = {"lowres_BCHW": noised_BCHW, "lowres_log_snr_B": log_snr_B}
    settings = SamplingConfig(guidance=1.0, threshold="none")
    return stage_denoiser(stage, settings, SamplerInputs(text), lowres)


def collect_likelihood(tables: Sequence[Mapping[str, Any]]) -> dict[str, list[ImageBits]]:
    """Returns {stage: images} of what the workers wrote: {stage, images}; stages without images are left out."""
    return {str(table["stage"]): list(table["images"]) for table in tables if table["images"]}
