"""Random numbers without a generator: their distribution, and that they depend on key, index and place alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from train.loader.counter_random import GAMMA, counter_normal, counter_starts, counter_uniform
from train.loader.sampler import SampleRandom

MASK = (1 << 64) - 1


def splitmix(state: int) -> int:
    """The finaliser of SplitMix64 on Python's integers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def reference_bits(key: int, index: int, place: int) -> int:
    """The bits of a place of a sample's sequence, from 1 on."""
    gamma = GAMMA & MASK
    return splitmix((splitmix((index * gamma) & MASK) + key + place * gamma) & MASK)


@pytest.mark.parametrize("key", [0, 5, (1 << 63) - 1])
def test_the_bits_are_those_of_splitmix64(key: int) -> None:
    indices = [0, 1, 12345, 5_000_000_000]
    starts = counter_starts(torch.tensor(indices))
    uniform, normal = counter_uniform(key, starts, (2, 3)), counter_normal(key, starts, (3,))
    for row, index in enumerate(indices):
        bits = [reference_bits(key, index, place) for place in range(1, 7)]
        assert uniform[row].flatten().tolist() == [((value >> 40) / 2**24 + 0.5) % 1 for value in bits]
        radii = [math.sqrt(-2 * math.log(((value & 0xFFFFFFFF) + 0.5) / 2**32)) for value in bits[:2]]
        angles = [((value >> 32) - (1 << 32) * (value >> 63)) * 2 * math.pi / 2**32 for value in bits[:2]]
        expected = [radii[0] * math.cos(angles[0]), radii[1] * math.cos(angles[1]), radii[0] * math.sin(angles[0])]
        np.testing.assert_allclose(normal[row], expected, rtol=1e-4, atol=1e-5)


def test_normal_numbers_are_normal_and_independent() -> None:
    starts = counter_starts(torch.arange(400))
    drawn = counter_normal(11, starts, (3, 15, 15)).flatten(1)
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 0.01
    assert abs(float((drawn**4).mean()) - 3) < 0.1
    # Neighbours in a sample, the two halves that share bits, neighbouring samples and other keys.
    other = counter_normal(12, starts, (3, 15, 15)).flatten(1)
    half = -(-drawn.shape[1] // 2)
    for one, two in (
        (drawn[:, :-1], drawn[:, 1:]),
        (drawn[:, : half - 1], drawn[:, half:]),
        (drawn[:-1], drawn[1:]),
        (drawn, other),
        (drawn.abs(), other.abs() - 1),
    ):
        assert abs(float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1])) < 0.012
    assert stats.kstest(counter_uniform(3, counter_starts(torch.arange(20_000)), ()).numpy(), "uniform").pvalue > 0.01


def test_a_sample_has_the_same_numbers_in_any_batch() -> None:
    start_B, alone = counter_starts(torch.tensor([7, 3, 9])), counter_starts(torch.tensor([9]))
    for draw in (counter_normal, counter_uniform):
        assert torch.equal(draw(1, start_B, (2, 5))[2], draw(1, alone, (2, 5))[0])
        assert draw(1, start_B, ()).shape == (3,)
        assert not torch.equal(draw(1, start_B, (2, 5)), draw(2, start_B, (2, 5)))


def test_draws_are_made_on_the_device_of_the_indices() -> None:
    random = SampleRandom(0, 3, [5, 6], torch.tensor([5, 6], device="meta"))
    for drawn in (random.normal("noise", 3, 4), random.uniform("keep", 3, 4)):
        assert drawn.is_meta and drawn.shape == (2, 3, 4) and drawn.dtype == torch.float32
    assert SampleRandom(0, 3, [5, 6]).normal("noise", 2).device.type == "cpu"
