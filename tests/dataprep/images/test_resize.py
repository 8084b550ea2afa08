"""Resizing."""

from __future__ import annotations

import numpy as np
import pytest

from dataprep.images.resize import resize_square
from tests.helpers.images import picture


def test_resize_square() -> None:
    image = picture(width=90, height=60)
    assert np.array_equal(resize_square(image, 60), image[:, 15:75])
    assert resize_square(image, 16).shape == (16, 16, 3)
    assert resize_square(image, 200, "squash").shape == (200, 200, 3)
    assert abs(resize_square(image, 6).mean() - image[:, 15:75].mean()) < 1  # area averaging keeps the mean
    checks = np.indices((64, 64)).sum(0)[..., None].repeat(3, 2) % 2 * 255
    assert np.ptp(resize_square(checks.astype(np.uint8), 16)) <= 1  # no aliasing
    with pytest.raises(ValueError, match="centre, squash"):
        resize_square(image, 8, "random")
