"""Noise levels for few evaluations, fitted to a trained stage without training it.

After Chen et al. 2024 (GITS, arXiv 2405.11326): along trajectories of many steps, the error of one long step between
any two noise levels is measured, and dynamic programming finds the steps whose errors add up to the least. Images are
(B, C, H, W), float; N noise levels from pure noise up, and the clean end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from train.diffusion.guidance import PredictX0
from train.diffusion.samplers import dpmpp_2m
from train.diffusion.schedules import alpha_sigma, eps_from_x0


def measure_steps(denoise: PredictX0, start_BCHW: Tensor, log_snrs: Tensor) -> Tensor:
    """Returns the error of a step of `ddim` from each level to each, (N, N + 1), float64 on the CPU, mean of the batch.

    ``log_snrs`` (N + 1,) are the levels and the clean end. The error is the root mean square over an image of
    x / alpha, in which the sampler's ODE has no other term than the noise, so errors at all levels are in pixels of the
    clean image. It is infinite where the second level is not above the first.
    """
    points, images = list[Tensor](), list[Tensor]()

    def record(x_BCHW: Tensor, log_snr_B: Tensor) -> Tensor:
        points.append(x_BCHW)
        images.append(denoise(x_BCHW, log_snr_B))
        return images[-1]

    end_BCHW = dpmpp_2m(record, start_BCHW, log_snrs, torch.zeros)
    count = len(points)
    costs = torch.full((count, count + 1), torch.inf, dtype=torch.float64)
    for first in range(count):
        level_B = start_BCHW.new_full((len(start_BCHW),), float(log_snrs[first]))
        eps_BCHW = eps_from_x0(images[first], points[first], level_B)
        for second in range(first + 1, count + 1):
            if second == count:
                error_BCHW = end_BCHW - images[first]
            else:
                alpha, sigma = (float(scale) for scale in alpha_sigma(log_snrs[second : second + 1]))
                error_BCHW = points[second] / alpha - images[first] - sigma / alpha * eps_BCHW
            costs[first, second] = float(error_BCHW.square().mean(dim=(1, 2, 3)).sqrt().mean())
    return costs


def choose_levels(costs: Tensor | Sequence[Sequence[float]], steps: int) -> list[int]:
    """Returns the numbers of ``steps`` levels, the first among them, from which the clean end costs least in all.

    ``costs`` (N, N + 1) as `measure_steps` gives them. Raises ValueError for more steps than there are levels.
    """
    table = torch.as_tensor(costs, dtype=torch.float64)
    count = len(table)
    if not 1 <= steps <= count:
        raise ValueError(f"{steps} steps of {count} levels; take 1 to {count}")
    least, came = table[:, count].clone(), list[list[int]]()  # of one step from each level to the end
    for _ in range(steps - 1):
        totals = table[:, :count] + least[None]  # (from, to)
        least, chosen = totals.min(dim=1)
        came.append(chosen.tolist())
    path = [0]
    for chosen_next in reversed(came):
        path.append(chosen_next[path[-1]])
    return path


def path_cost(costs: Tensor, path: Sequence[int]) -> float:
    """Returns what the steps along ``path`` and to the clean end cost."""
    return float(sum(costs[first, second] for first, second in zip(path, [*path[1:], len(costs)], strict=True)))
