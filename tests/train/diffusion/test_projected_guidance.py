"""Projected guidance, against the algorithm of its paper written out for one image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.gaussian import normal
from train.diffusion.guidance import apply_guidance
from train.diffusion.projected_guidance import NO_PROJECTION, DifferenceMemory, Projection, project, projected_guidance

CONDITIONAL, UNCONDITIONAL = normal(3, 3, 4, 4), normal(3, 3, 4, 4, seed=1)


def guide(projection: Projection, memory: DifferenceMemory | None = None, scale: float = 4.0) -> torch.Tensor:
    return projected_guidance(CONDITIONAL, CONDITIONAL - UNCONDITIONAL, scale, projection, memory or DifferenceMemory())


def test_without_projection_it_is_classifier_free_guidance() -> None:
    torch.testing.assert_close(guide(NO_PROJECTION), apply_guidance(CONDITIONAL, UNCONDITIONAL, 4.0))


def test_the_paper_in_numpy_for_each_image() -> None:
    parallel, momentum, scale = 0.2, -0.5, 4.0
    memory, averages = DifferenceMemory(), [np.zeros(48)] * 3
    for step in range(3):
        conditional, unconditional = normal(3, 3, 4, 4, seed=10 + step), normal(3, 3, 4, 4, seed=20 + step)
        projection = Projection(parallel, 0.9, momentum)
        found = projected_guidance(conditional, conditional - unconditional, scale, projection, memory)
        for row in range(3):
            one, other = (image[row].double().numpy().ravel() for image in (conditional, unconditional))
            averages[row] = (one - other) + momentum * averages[row]
            radius = 0.9 * np.sqrt(48)  # the paper's r is a norm, ours a root mean square
            step_by = averages[row] * min(1, radius / np.linalg.norm(averages[row]))
            along = one * (step_by @ one) / (one @ one)
            wanted = one + (scale - 1) * (step_by - along + parallel * along)
            np.testing.assert_allclose(found[row].numpy().ravel(), wanted, rtol=1e-4, atol=1e-5)


def test_nothing_is_left_along_the_image() -> None:
    added = guide(Projection(parallel=0.0)) - CONDITIONAL
    assert float(project(added, CONDITIONAL).abs().max()) < 1e-5 < float(added.abs().max())
    assert float(project(CONDITIONAL, torch.zeros_like(CONDITIONAL)).abs().max()) == 0


def test_the_norm_limits_only_what_is_larger() -> None:
    added = guide(Projection(norm=0.5), scale=2.0) - CONDITIONAL
    assert added.square().mean(dim=(1, 2, 3)).sqrt().tolist() == pytest.approx([0.5] * 3, rel=1e-4)
    torch.testing.assert_close(guide(Projection(norm=100.0)), guide(NO_PROJECTION))


def test_only_momentum_remembers() -> None:
    memory = DifferenceMemory()
    guide(Projection(parallel=0.0), memory)
    assert memory.difference_BCHW is None
    first, second = (guide(Projection(momentum=-0.5), memory) for _ in range(2))
    torch.testing.assert_close(second - CONDITIONAL, (first - CONDITIONAL) / 2)
