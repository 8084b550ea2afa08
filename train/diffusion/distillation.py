"""Distillation of a sampler's steps: what a student has to predict to be in one step where its teacher is in several.

Progressive distillation (Salimans and Ho 2022, arXiv 2202.00512) with any number of the teacher's steps for one of the
student's, which takes `ddim`'s. B batch, S steps of the teacher, images (B, C, H, W), float.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dataprep.io.errors import UserError
from train.diffusion.config import DiffusionConfig, Spacing
from train.diffusion.guidance import PredictX0
from train.diffusion.objective import evaluation_log_snrs
from train.diffusion.samplers import Sampler, follow
from train.diffusion.schedules import alpha_sigma


def step_levels(config: DiffusionConfig, steps: int, teacher_steps: int, spacing: Spacing) -> Tensor:
    """Returns the noise levels of the teacher within each step of the student, (steps, teacher_steps + 1), float32.

    A row ends where the next begins; the first begins at pure noise. Raises UserError where the schedule, clamped, has
    too few.
    """
    levels = evaluation_log_snrs(config, steps * teacher_steps, spacing)
    if len(levels) != steps * teacher_steps + 1:
        raise UserError(
            f"distillation: {steps} x {teacher_steps} steps at spacing {spacing} take several of one noise level, the "
            f"least; take spacing log_snr, or a log_snr_shift nearer to 0 than {config.log_snr_shift:g}"
        )
    return levels.unfold(0, teacher_steps + 1, teacher_steps)


def step_target(denoise: PredictX0, sampler: Sampler, x_BCHW: Tensor, levels_BS: Tensor, is_last_B: Tensor) -> Tensor:
    """Returns the clean image from which a step of `ddim` reaches the teacher's point (appendix G of the paper).

    ``denoise`` is the teacher, asked once at each of ``levels_BS`` (B, S + 1) but the last. ``is_last_B``: rows whose
    step is the sampler's last, which returns the clean image itself; theirs is the teacher's last prediction.
    """
    predicted = x_BCHW

    def remember(at_BCHW: Tensor, log_snr_B: Tensor) -> Tensor:
        nonlocal predicted
        predicted = denoise(at_BCHW, log_snr_B)
        return predicted

    reached_BCHW = follow(sampler, remember, x_BCHW, levels_BS.T, torch.zeros)
    (alpha, sigma), (alpha_then, sigma_then) = alpha_sigma(levels_BS[:, 0]), alpha_sigma(levels_BS[:, -1])
    kept = sigma_then / sigma
    x0_BCHW = (reached_BCHW - kept * x_BCHW) / (alpha_then - kept * alpha)
    return torch.where(is_last_B.view(-1, 1, 1, 1), predicted, x0_BCHW)
