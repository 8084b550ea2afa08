"""Limits of float32 columns."""

from __future__ import annotations

import numpy as np
import pytest

from dataprep.io.errors import UserError
from tests.helpers.selection import OFF, float32, reasons, row


def test_a_float32_equal_to_its_limit_passes_at_least_and_not_below() -> None:
    # 0.7 as float32 is below 0.7: neither may `below` let it pass nor `at least` drop it.
    heads = {"clip_similarity": float32([0.7]), "nsfw": float32([0.7])}
    assert reasons([row(0)], OFF, heads, min_similarity=0.7) == [None]
    with pytest.raises(UserError, match="unsafe dropped 1"):
        reasons([row(0)], OFF.model_copy(update={"unsafe_below": 0.7}), heads)
    assert float(np.float32(0.7)) < 0.7
