"""Targets of distillation, on Gaussian data whose denoiser is known: a student that meets them is the teacher."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dataprep.io.errors import UserError
from tests.helpers.gaussian import exact_denoiser, normal
from train.diffusion.config import DiffusionConfig
from train.diffusion.distillation import step_levels, step_target
from train.diffusion.objective import evaluation_log_snrs
from train.diffusion.samplers import SAMPLERS, ddim, follow

STEPS, EACH = 4, 3
DENOISE = exact_denoiser(0.4, 0.3)


def make_levels(each: int = EACH) -> Tensor:
    return step_levels(DiffusionConfig(), STEPS, each, "time")


def test_levels_of_the_teacher_chain_up() -> None:
    levels = make_levels()
    assert levels.shape == (STEPS, EACH + 1)
    assert torch.equal(levels[1:, 0], levels[:-1, -1]) and bool((levels.diff(dim=1) > 0).all())
    whole = evaluation_log_snrs(DiffusionConfig(), STEPS * EACH)
    assert torch.equal(levels[:, 0], whole[:-1:EACH]) and levels[-1, -1] == whole[-1]
    with pytest.raises(UserError, match=r"1000 x 2 steps at spacing time .* take spacing log_snr"):
        step_levels(DiffusionConfig(log_snr_shift=-10.0), 1000, 2, "time")


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_a_step_from_the_target_is_where_the_teacher_is(name: str) -> None:
    levels, start = make_levels(), normal(STEPS, 1, 2, 2)
    last = torch.arange(STEPS) == STEPS - 1
    target = step_target(DENOISE, SAMPLERS[name], start, levels, last)
    reached = follow(SAMPLERS[name], DENOISE, start, levels.T, torch.zeros)
    one_step = follow(ddim, lambda x, at: target, start, levels[:, [0, -1]].T, torch.zeros)
    torch.testing.assert_close(one_step[:-1], reached[:-1], atol=1e-5, rtol=1e-4)
    whole = SAMPLERS[name](DENOISE, start[-1:], levels[-1], torch.zeros)  # ends with its last prediction
    torch.testing.assert_close(target[-1:], whole)


def test_of_one_step_the_target_is_the_teachers_prediction() -> None:
    levels, start = make_levels(1), normal(STEPS, 1, 2, 2)
    target = step_target(DENOISE, ddim, start, levels, torch.zeros(STEPS, dtype=torch.bool))
    torch.testing.assert_close(target, DENOISE(start, levels[:, 0]), atol=1e-4, rtol=1e-4)


def test_a_student_that_meets_its_targets_samples_what_the_teacher_does() -> None:
    levels, start = make_levels(), normal(8, 1, 2, 2)

    def student(x: Tensor, at: Tensor) -> Tensor:
        step = int((levels[:, 0] - at[0]).abs().argmin())
        rows = levels[step].expand(len(x), -1)
        return step_target(DENOISE, ddim, x, rows, torch.full((len(x),), step == STEPS - 1))

    few = ddim(student, start, torch.cat([levels[:, 0], torch.tensor([20.0])]), torch.zeros)
    many = ddim(DENOISE, start, evaluation_log_snrs(DiffusionConfig(), STEPS * EACH), torch.zeros)
    torch.testing.assert_close(few, many, atol=1e-4, rtol=1e-4)
    plain = ddim(DENOISE, start, torch.cat([levels[:, 0], torch.tensor([20.0])]), torch.zeros)
    assert float((plain - many).abs().max()) > 0.01  # which in as few steps it does not reach itself


def test_the_teacher_is_asked_once_a_step() -> None:
    asked: list[Tensor] = []

    def denoise(x: Tensor, at: Tensor) -> Tensor:
        asked.append(at)
        return DENOISE(x, at)

    levels = make_levels()
    step_target(denoise, SAMPLERS["dpmpp_2m"], normal(STEPS, 1, 2, 2), levels, torch.zeros(STEPS, dtype=torch.bool))
    assert torch.equal(torch.stack(asked), levels.T[:-1])
