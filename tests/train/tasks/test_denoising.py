"""What tasks that train a denoiser share: times, dropped vectors."""

from __future__ import annotations

import torch

from train.loader.sampler import SampleRandom
from train.tasks.denoising import drop_vectors, spread_times


def test_times_are_spread_evenly() -> None:
    times = spread_times(SampleRandom(3, 5, range(160, 192))).sort().values
    gaps = times.diff()
    assert float(gaps.max()) < 2.7 / 32 and float(times[0]) < 0.09 and float(times[-1]) > 0.91
    part = spread_times(SampleRandom(3, 5, [170]))
    assert part in spread_times(SampleRandom(3, 5, range(160, 192)))
    many = torch.cat([spread_times(SampleRandom(0, step, range(step * 4, step * 4 + 4))) for step in range(500)])
    assert abs(float(many.mean()) - 0.5) < 0.02


def test_a_share_of_the_vectors_is_dropped() -> None:
    random = SampleRandom(0, 0, range(4000))
    dropped = drop_vectors(torch.ones(4000, 3, dtype=torch.float16), 0.25, random, "keep")
    assert dropped.dtype == torch.float32 and set(dropped.unique().tolist()) == {0.0, 1.0}
    assert abs(float((dropped[:, 0] == 0).float().mean()) - 0.25) < 0.03
    assert torch.equal(dropped[:, 0], dropped[:, 2])
    assert torch.equal(
        dropped[100:110], drop_vectors(torch.ones(10, 3), 0.25, SampleRandom(0, 0, range(100, 110)), "keep")
    )
    assert torch.equal(drop_vectors(torch.ones(9, 3), 0.0, SampleRandom(0, 0, range(9)), "keep"), torch.ones(9, 3))
