"""Rendered scenes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dataprep.synthetic.grammar import parse_caption, sample_claim
from dataprep.synthetic.renderer import HALF, draw_scene, place_shapes


def test_objects_stay_inside_and_apart() -> None:
    rng = np.random.default_rng(0)
    for number in range(600):
        placed = place_shapes(sample_claim(rng, held_out=number % 3 == 0), rng)
        for item in placed:
            half = item.radius * HALF[item.shape]
            assert half <= item.x <= 1 - half and half <= item.y <= 1 - half
        for index, one in enumerate(placed):
            for other in placed[:index]:
                apart = one.radius * HALF[one.shape] + other.radius * HALF[other.shape]
                # Two triangles on a diagonal may share a corner of their boxes, not of themselves.
                assert max(abs(one.x - other.x), abs(one.y - other.y)) > apart - 0.1


def test_drawing_is_antialiased_and_deterministic() -> None:
    claim = parse_caption("a large red circle in the centre")
    assert claim
    one, same, other = (draw_scene(claim, np.random.default_rng(seed), 64) for seed in (1, 1, 2))
    assert one.shape == (64, 64, 3) and one.dtype == np.uint8
    assert (one == same).all() and (one != other).any()
    assert len(np.unique(one.reshape(-1, 3), axis=0)) > 10


def test_a_drawing_at_another_size_is_the_same_scene() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        claim = sample_claim(rng)
        large, small = (draw_scene(claim, np.random.default_rng(5), size) for size in (128, 32))
        shrunk = np.asarray(Image.fromarray(large).resize((32, 32), Image.Resampling.BOX), np.float32)
        assert np.abs(shrunk - small).mean() < 2


def test_a_crowded_claim_is_refused() -> None:
    claim = parse_caption("three large red circles")
    assert claim
    with pytest.raises(ValueError, match="too crowded"):
        draw_scene(claim, np.random.default_rng(0), 64)
