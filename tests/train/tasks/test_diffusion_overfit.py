"""Each kind of stage overfits eight images and reproduces them: no blank samples, no ignored input.

Downsampled outputs of super-resolution stages have the colours of their input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from dataprep.synthetic.grammar import sample_claim
from dataprep.synthetic.renderer import draw_scene
from tests.helpers.unets import unet_config
from train.diffusion.config import DiffusionConfig
from train.diffusion.guidance import GuidedDenoiser
from train.diffusion.objective import (
    augment_lowres,
    diffusion_loss,
    log_snr_at_time,
    to_model_range,
    to_pixels,
    upsample_lowres,
)
from train.diffusion.samplers import dpmpp_2m, sampling_log_snrs
from train.models.base import Conditions
from train.models.unet.unet import UNet

COUNT, TEXT, LARGE = 8, 16, 16


def make_images(size: int) -> Tensor:
    """Returns eight scenes, uint8 (8, size, size, 3)."""
    rng = np.random.default_rng(3)
    scenes = [draw_scene(sample_claim(rng), rng, 64) for _ in range(COUNT)]
    return torch.from_numpy(
        np.stack([cv2.resize(scene, (size, size), interpolation=cv2.INTER_AREA) for scene in scenes])
    )


def make_captions(rows: Tensor) -> Conditions:
    """Returns a caption of two tokens per image."""
    text = torch.randn(COUNT, 2, TEXT, generator=torch.Generator().manual_seed(5))[rows]
    return Conditions(text, torch.ones(len(rows), 2, dtype=torch.bool))


def fit(model: UNet, steps: int, batch: Callable[[torch.Generator], Tensor]) -> list[float]:
    """Trains with Adam on the losses (B,) of ``batch``; returns the mean loss of each step."""
    optimizer, generator, losses = torch.optim.Adam(model.parameters(), 2e-3), torch.Generator().manual_seed(0), []
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        value = batch(generator).mean()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(value.detach()))
    return losses


@torch.no_grad()
def sample(model: UNet, config: DiffusionConfig, shape: tuple[int, ...], conditions: Conditions) -> Tensor:
    """uint8 (B, H, W, 3), without guidance, in 20 evaluations."""
    denoise = GuidedDenoiser(
        lambda x, at, keep: model(x, at, conditions),
        config.prediction,
        1.0,
        "static",
    )
    start = torch.randn(shape, generator=torch.Generator().manual_seed(9))
    return to_pixels(
        dpmpp_2m(denoise, start, sampling_log_snrs(partial(log_snr_at_time, config), 20), lambda step: start)
    )


def rms_error(one: Tensor, other: Tensor) -> float:
    """Returns the root mean square difference, in 255ths."""
    return float((one.float() - other.float()).square().mean().sqrt())


def noise_lowres(
    small: Tensor, size: int, level: Tensor, generator: torch.Generator, config: DiffusionConfig
) -> tuple[Tensor, Tensor]:
    resized = upsample_lowres(small, size)
    return augment_lowres(resized, level, torch.randn(resized.shape, generator=generator), config)


@pytest.mark.slow
def test_a_base_stage_overfits_eight_images() -> None:
    torch.manual_seed(0)
    config, pixels = DiffusionConfig(), make_images(8)
    model, x0 = UNet(unet_config("micro-base", text_dim=TEXT)), to_model_range(pixels)

    def batch(generator: torch.Generator) -> Tensor:
        rows = torch.arange(2 * COUNT) % COUNT
        t = (torch.rand(1, generator=generator) + torch.arange(2 * COUNT) / (2 * COUNT)) % 1
        noise = torch.randn(x0[rows].shape, generator=generator)
        value, _ = diffusion_loss(lambda x, at: model(x, at, make_captions(rows)), x0[rows], t, noise, config)
        return value

    losses = fit(model, 600, batch)
    assert np.mean(losses[-50:]) < 0.05 < 0.5 < losses[0]
    samples = sample(model.eval(), config, tuple(x0.shape), make_captions(torch.arange(COUNT)))
    assert rms_error(samples, pixels) < 12
    nearest = [int(np.argmin([rms_error(one, other) for other in pixels])) for one in samples]
    assert nearest == list(range(COUNT))  # each caption gives its own image


def crop_image(x_CHW: Tensor, top: int, left: int, side: int) -> Tensor:
    return x_CHW[:, top : top + side, left : left + side]


@pytest.mark.parametrize(("crop", "steps"), [(None, 400), pytest.param(12, 700, marks=pytest.mark.slow)])
def test_a_super_resolution_stage_overfits_eight_images_and_keeps_their_colours(crop: int | None, steps: int) -> None:
    torch.manual_seed(0)
    config = DiffusionConfig(prediction="x0", lowres_max_level=0.3)
    large, small = make_images(LARGE), make_images(LARGE // 2)
    model = UNet(unet_config("micro-sr", text_dim=TEXT, channels=16))
    x0, low = to_model_range(large), to_model_range(small)
    side = crop or LARGE

    def batch(generator: torch.Generator) -> Tensor:
        rows = torch.arange(2 * COUNT) % COUNT
        level, t = torch.rand(len(rows), generator=generator) * 0.3, torch.rand(len(rows), generator=generator)
        # Crop on the grid of the small image, so that both crops show the same place.
        places = torch.randint(0, (LARGE - side) // 2 + 1, (len(rows), 2), generator=generator).tolist()
        target = torch.stack(
            [crop_image(x0[row], 2 * y, 2 * x, side) for row, (y, x) in zip(rows, places, strict=True)]
        )
        given = torch.stack([crop_image(low[row], y, x, side // 2) for row, (y, x) in zip(rows, places, strict=True)])
        noised, noised_at = noise_lowres(given, side, level, generator, config)
        conditions = make_captions(rows)._replace(lowres_BCHW=noised, lowres_log_snr_B=noised_at)
        noise = torch.randn(target.shape, generator=generator)
        value, _ = diffusion_loss(lambda x, at: model(x, at, conditions), target, t, noise, config)
        return value

    losses = fit(model, steps, batch)
    assert np.mean(losses[-50:]) < 0.012 and np.mean(losses[-50:]) < losses[0] / 5
    noised, noised_at = noise_lowres(low, LARGE, torch.zeros(COUNT), torch.Generator().manual_seed(1), config)
    conditions = make_captions(torch.arange(COUNT))._replace(lowres_BCHW=noised, lowres_log_snr_B=noised_at)
    samples = sample(model.eval(), config, tuple(x0.shape), conditions)
    resized = to_pixels(upsample_lowres(low, LARGE))
    assert rms_error(samples, large) < 0.6 * rms_error(resized, large)  # closer to the true image than its input
    again = np.stack(
        [cv2.resize(one.numpy(), (LARGE // 2, LARGE // 2), interpolation=cv2.INTER_AREA) for one in samples]
    )
    apart = np.abs(again.astype(float) - small.numpy())
    assert apart.mean(axis=(1, 2, 3)).max() < 6  # for every image: the input is not ignored
    shift = np.abs(again.mean(axis=(1, 2)) - small.numpy().mean(axis=(1, 2))).max(axis=1)  # per image, in 255ths
    # Crops have few borders, whole images this small have many: a few of them shift by more.
    assert shift.mean() < 2 and shift.max() < (2 if crop is None else 4)
