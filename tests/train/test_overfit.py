"""Each kind of stage learns eight pictures by heart and draws them again: no blank samples, no ignored input.

The super-resolution stages' outputs, reduced again, have the colours of what they were given.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from dataprep.drawing import draw
from dataprep.grammar import draw_claim
from train.diffusion.guidance import guided_denoiser
from train.diffusion.objective import DiffusionConfig, augment_lowres, loss, to_model_range, to_pixels, upsample
from train.diffusion.samplers import dpmpp_2m, sampling_log_snrs
from train.models.presets import unet_config
from train.models.unet import UNet

COUNT, TEXT, LARGE = 8, 16, 16
Condition = Callable[[Tensor], dict[str, Tensor]]  # rows (B,) -> what else the network is given


def pictures(size: int) -> Tensor:
    """Eight scenes, uint8 (8, size, size, 3)."""
    rng = np.random.default_rng(3)
    scenes = [draw(draw_claim(rng), rng, 64) for _ in range(COUNT)]
    return torch.from_numpy(
        np.stack([cv2.resize(scene, (size, size), interpolation=cv2.INTER_AREA) for scene in scenes])
    )


def captions(rows: Tensor) -> dict[str, Tensor]:
    """A caption of two tokens for each picture."""
    text = torch.randn(COUNT, 2, TEXT, generator=torch.Generator().manual_seed(5))[rows]
    return {"text_BLD": text, "text_mask_BL": torch.ones(len(rows), 2, dtype=torch.bool)}


def fit(model: UNet, steps: int, batch: Callable[[torch.Generator], Tensor]) -> list[float]:
    """Trains with Adam on ``batch``'s losses (B,); gives the mean loss of each step."""
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
def sample(model: UNet, config: DiffusionConfig, shape: tuple[int, ...], condition: dict[str, Tensor]) -> Tensor:
    """uint8 (B, H, W, 3), without guidance, in 20 evaluations."""
    denoise = guided_denoiser(lambda x, at, keep: model(x, at, **condition), config.prediction, 1.0, "static")
    start = torch.randn(shape, generator=torch.Generator().manual_seed(9))
    return to_pixels(dpmpp_2m(denoise, start, sampling_log_snrs(config.log_snr, 20), lambda step: start))


def error(one: Tensor, other: Tensor) -> float:
    """Root mean square, in 255ths."""
    return float((one.float() - other.float()).square().mean().sqrt())


def lowres(
    small: Tensor, size: int, level: Tensor, generator: torch.Generator, config: DiffusionConfig
) -> list[Tensor]:
    resized = upsample(small, size)
    return augment_lowres(resized, level, torch.randn(resized.shape, generator=generator), config)


@pytest.mark.slow
def test_a_base_stage_learns_eight_pictures_by_heart() -> None:
    torch.manual_seed(0)
    config, pixels = DiffusionConfig(), pictures(8)
    model, x0 = UNet(unet_config("micro-base", text_dim=TEXT)), to_model_range(pixels)

    def batch(generator: torch.Generator) -> Tensor:
        rows = torch.arange(2 * COUNT) % COUNT
        t = (torch.rand(1, generator=generator) + torch.arange(2 * COUNT) / (2 * COUNT)) % 1
        noise = torch.randn(x0[rows].shape, generator=generator)
        value, _ = loss(lambda x, at: model(x, at, **captions(rows)), x0[rows], t, noise, config)
        return value

    losses = fit(model, 600, batch)
    assert np.mean(losses[-50:]) < 0.05 < 0.5 < losses[0]
    drawn = sample(model.eval(), config, tuple(x0.shape), captions(torch.arange(COUNT)))
    assert error(drawn, pixels) < 12
    nearest = [int(np.argmin([error(one, other) for other in pixels])) for one in drawn]
    assert nearest == list(range(COUNT))  # each caption its own picture


def cut(x_CHW: Tensor, top: int, left: int, side: int) -> Tensor:
    return x_CHW[:, top : top + side, left : left + side]


@pytest.mark.parametrize(("crop", "steps"), [(None, 400), pytest.param(12, 700, marks=pytest.mark.slow)])
def test_a_super_resolution_stage_learns_eight_pictures_and_keeps_their_colours(crop: int | None, steps: int) -> None:
    torch.manual_seed(0)
    config = DiffusionConfig(prediction="x0", lowres_max_level=0.3)
    large, small = pictures(LARGE), pictures(LARGE // 2)
    model = UNet(unet_config("micro-sr", text_dim=TEXT, channels=16))
    x0, low = to_model_range(large), to_model_range(small)
    side = crop or LARGE

    def batch(generator: torch.Generator) -> Tensor:
        rows = torch.arange(2 * COUNT) % COUNT
        level, t = torch.rand(len(rows), generator=generator) * 0.3, torch.rand(len(rows), generator=generator)
        # Cropped on the grid of the small picture, so that both show the same place.
        places = torch.randint(0, (LARGE - side) // 2 + 1, (len(rows), 2), generator=generator).tolist()
        target = torch.stack([cut(x0[row], 2 * y, 2 * x, side) for row, (y, x) in zip(rows, places, strict=True)])
        given = torch.stack([cut(low[row], y, x, side // 2) for row, (y, x) in zip(rows, places, strict=True)])
        noised, noised_at = lowres(given, side, level, generator, config)
        condition = {**captions(rows), "lowres_BCHW": noised, "lowres_log_snr_B": noised_at}
        noise = torch.randn(target.shape, generator=generator)
        value, _ = loss(lambda x, at: model(x, at, **condition), target, t, noise, config)
        return value

    losses = fit(model, steps, batch)
    assert np.mean(losses[-50:]) < 0.012 and np.mean(losses[-50:]) < losses[0] / 5
    noised, noised_at = lowres(low, LARGE, torch.zeros(COUNT), torch.Generator().manual_seed(1), config)
    condition = {**captions(torch.arange(COUNT)), "lowres_BCHW": noised, "lowres_log_snr_B": noised_at}
    drawn = sample(model.eval(), config, tuple(x0.shape), condition)
    resized = to_pixels(upsample(low, LARGE))
    assert error(drawn, large) < 0.6 * error(resized, large)  # nearer to the true picture than what it was given
    again = np.stack([cv2.resize(one.numpy(), (LARGE // 2, LARGE // 2), interpolation=cv2.INTER_AREA) for one in drawn])
    apart = np.abs(again.astype(float) - small.numpy())
    assert apart.mean(axis=(1, 2, 3)).max() < 6  # everywhere: its input is not ignored
    shift = np.abs(again.mean(axis=(1, 2)) - small.numpy().mean(axis=(1, 2))).max(axis=1)  # of a picture, in 255ths
    # Trained on crops it sees few borders, of which a whole picture this small has many: a few of them shift by more.
    assert shift.mean() < 2 and shift.max() < (2 if crop is None else 4)
