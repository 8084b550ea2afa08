"""Loss and noise conditioning augmentation, against closed forms."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from dataprep.io.errors import UserError
from tests.helpers.gaussian import normal
from train.beta_schedule import BetaSchedule, log_snr_table
from train.diffusion.config import DiffusionConfig, Prediction, Weighting
from train.diffusion.objective import (
    augment_lowres,
    denoising_loss,
    diffusion_loss,
    evaluation_log_snrs,
    log_snr_at_level,
    log_snr_at_time,
    noise_images,
    to_model_range,
    to_pixels,
    training_time,
    upsample_lowres,
)
from train.diffusion.schedules import (
    eps_from_x0,
    prediction_target,
)

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


@pytest.mark.parametrize("weighting", ["min_snr", "sigmoid"])
def test_weighted_loss_is_the_same_in_every_prediction(weighting: Weighting) -> None:
    x0, noise, t = normal(4, 3, 4, 4), normal(4, 3, 4, 4, seed=1), torch.tensor([0.1, 0.3, 0.6, 0.9])
    guess = normal(4, 3, 4, 4, seed=2)
    losses = []
    for prediction in PREDICTIONS:
        config = DiffusionConfig(prediction=prediction, weighting=weighting)

        def model(x: Tensor, at: Tensor, prediction: Prediction = prediction) -> Tensor:
            return prediction_target(prediction, guess, eps_from_x0(guess, x, at), at)

        value, x0_hat = diffusion_loss(model, x0, t, noise, config)
        torch.testing.assert_close(x0_hat, guess, atol=1e-3, rtol=1e-3)
        losses.append(value)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(losses[2], losses[1], atol=1e-4, rtol=1e-3)


def test_loss_of_a_perfect_model_is_zero() -> None:
    x0, noise, t = normal(3, 3, 4, 4), normal(3, 3, 4, 4, seed=1), torch.tensor([0.2, 0.5, 0.8])
    value, _ = diffusion_loss(lambda x, at: prediction_target("v", x0, noise, at), x0, t, noise, DiffusionConfig())
    assert value.shape == (3,) and float(value.max()) == 0


def test_lowres_augmentation() -> None:
    config, lowres = DiffusionConfig(), normal(2, 3, 4, 4)
    clean, log_snr = augment_lowres(lowres, torch.tensor([0.0, 1.0]), normal(2, 3, 4, 4, seed=1), config)
    torch.testing.assert_close(clean[0], lowres[0], atol=0.06, rtol=0.02)
    assert float((clean[1] - normal(2, 3, 4, 4, seed=1)[1]).abs().max()) < 0.01
    assert log_snr[0] > log_snr[1]


def test_pixels_round_trip() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    x = to_model_range(pixels)
    assert x.shape == (1, 3, 16, 16) and x.min() == -1 and x.max() == 1
    assert torch.equal(to_pixels(x), pixels)
    assert upsample_lowres(x, 32).shape == (1, 3, 32, 32) and upsample_lowres(x, (32, 64)).shape == (1, 3, 32, 64)


DISCRETE = DiffusionConfig(schedule="discrete", prediction="eps")


def test_training_takes_every_step_of_a_discrete_schedule_alike() -> None:
    t = (torch.arange(4000) + 0.5) / 4000
    steps = training_time(DISCRETE, t) * 999
    torch.testing.assert_close(steps, steps.round(), atol=1e-9, rtol=0)
    assert torch.bincount(steps.round().long()).tolist() == [4] * 1000
    assert torch.equal(training_time(DiffusionConfig(), t), t)
    table = log_snr_table(DISCRETE.betas).float()
    torch.testing.assert_close(log_snr_at_time(DISCRETE, training_time(DISCRETE, t))[::4], table, atol=1e-6, rtol=1e-6)


def test_levels_of_a_discrete_schedule_are_whole_steps() -> None:
    config = DiffusionConfig(lowres_schedule="discrete", lowres_betas=BetaSchedule(kind="linear", steps=11))
    table = log_snr_table(config.lowres_betas).float()
    found = log_snr_at_level(config, torch.tensor([0.0, 0.31, 0.349, 1.0]))
    torch.testing.assert_close(found, table[[0, 3, 3, 10]], atol=1e-6, rtol=1e-6)


def test_the_loss_leaves_a_learned_variance_alone() -> None:
    x0, noise, t = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1), torch.tensor([0.2, 0.7])
    output = normal(2, 6, 4, 4, seed=2).requires_grad_()
    loss, _ = diffusion_loss(lambda x, at: output, x0, t, noise, DISCRETE)
    torch.testing.assert_close(loss, (output[:, :3] - noise).square().mean((1, 2, 3)))
    loss.sum().backward()
    assert output.grad is not None
    assert float(output.grad[:, :3].abs().min()) > 0 and float(output.grad[:, 3:].abs().max()) == 0


def test_a_samplers_noise_levels_of_a_discrete_schedule() -> None:
    table = log_snr_table(DISCRETE.betas).float()
    levels = evaluation_log_snrs(DISCRETE, 4, "leading")
    torch.testing.assert_close(levels[:-1], table[[750, 500, 250, 0]], atol=1e-6, rtol=1e-6)
    assert float(levels[-1]) == 20.0
    assert torch.equal(evaluation_log_snrs(DISCRETE, 4, "leading", start=0.5), levels[2:])
    given = evaluation_log_snrs(DISCRETE, 99, "time", timesteps=[999, 3, 0])
    torch.testing.assert_close(given[:-1], table[[999, 3, 0]], atol=1e-6, rtol=1e-6)
    between = evaluation_log_snrs(DISCRETE, 2, "time")
    torch.testing.assert_close(between, torch.stack([table[999], table[499:501].mean(), table[0]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (DiffusionConfig(), {"steps": 4, "spacing": "leading"}, "spacing leading: needs a model of schedule discrete"),
        (
            DiffusionConfig(),
            {"steps": 4, "timesteps": [5, 0]},
            "timesteps: needs a model of schedule discrete",
        ),
        (DISCRETE, {"steps": 4, "timesteps": [1000, 0]}, "timesteps 1000: the model has steps 0 to 999"),
        (DISCRETE, {"steps": 1001, "spacing": "linspace"}, "steps 1001: spacing linspace takes the model's own 1000"),
    ],
)
def test_noise_levels_that_a_model_does_not_have(
    config: DiffusionConfig, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluation_log_snrs(config, **arguments)


def test_a_discrete_schedule_cannot_be_shifted() -> None:
    with pytest.raises(ValueError, match=r"log_snr_shift=1.0: schedule discrete has no noise levels but its betas'"):
        DiffusionConfig(schedule="discrete", log_snr_shift=1.0)


def test_a_small_image_can_keep_its_corners() -> None:
    x = normal(1, 3, 4, 4)
    aligned = upsample_lowres(x, 16, align_corners=True)
    for corner in ((0, 0), (0, -1), (-1, -1)):
        torch.testing.assert_close(aligned[0, :, corner[0], corner[1]], x[0, :, corner[0], corner[1]])
    assert not torch.allclose(aligned, upsample_lowres(x, 16))


def test_a_loss_of_images_is_added_and_reaches_the_network() -> None:
    """Half the squared error of the clean image, written as such a loss, is half of the loss for prediction x0."""
    config = DiffusionConfig(prediction="x0")
    noised = noise_images(torch.rand(4, 3, 4, 4), torch.arange(4) / 4, torch.randn(4, 3, 4, 4), config)
    output = torch.zeros(4, 3, 4, 4, requires_grad=True)
    seen = []

    def half(x0_hat: Tensor, x0: Tensor, log_snr_B: Tensor) -> Tensor:
        seen.append(log_snr_B)
        return (x0_hat - x0).square().mean(dim=(1, 2, 3)) / 2

    plain, _ = denoising_loss(lambda x, at: output, noised, config)
    both, _ = denoising_loss(lambda x, at: output, noised, config, half)
    torch.testing.assert_close(both, 1.5 * plain)
    assert torch.equal(seen[0], noised.log_snr_B)
    (of_plain,) = torch.autograd.grad(plain.sum(), output)
    (of_both,) = torch.autograd.grad(both.sum(), output)
    torch.testing.assert_close(of_both, 1.5 * of_plain)
