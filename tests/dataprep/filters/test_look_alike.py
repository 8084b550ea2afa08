"""Which rows keep a row from being kept."""

from __future__ import annotations

import numpy as np

from dataprep.filters.exchange import NONE
from dataprep.filters.look_alike import keep_first, make_member_dtype


def test_only_kept_rows_drop_others_and_the_first_counts() -> None:
    # 0-1 and 1-2 are pairs: 1 is dropped for 0, so that 2 stays; 4 is close to 2 and to 3.
    later_P, earlier_P = np.array([1, 2, 4, 4, 3]), np.array([0, 1, 3, 2, 0])
    original_N = np.full(6, NONE)
    original_N[5] = 3
    keep_first(later_P, earlier_P, original_N, lambda row, later: np.full(len(later), row != 0 or later[0] != 3))
    assert original_N.tolist() == [NONE, 0, NONE, 0, 2, 3]


def test_a_pair_that_is_not_alike_drops_nothing() -> None:
    original_N = np.full(2, NONE)
    keep_first(np.array([1]), np.array([0]), original_N, lambda _, later: np.zeros(len(later), bool))
    assert (original_N == NONE).all()


def test_a_member_holds_its_label_its_position_and_its_values() -> None:
    dtype = make_member_dtype((("phash", "<u8", ()), ("thumbnail", "|u1", (64, 3))))
    assert dtype.names == ("label", "position", "phash", "thumbnail") and dtype.itemsize == 24 + 192
