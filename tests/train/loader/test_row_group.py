"""Decoding of stored images."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from train.loader.row_group import decode_pixels, make_row_group


def test_bad_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="raw 16x16"):
        decode_pixels(b"123", "raw", (16, 16))
    with pytest.raises(ValueError, match="16x16 png"):
        decode_pixels(b"123", "png", (16, 16))


def test_missing_vectors_are_refused() -> None:
    table = pa.table({"key": ["a", "b"], "captions": [["x"], ["y"]], "v": pa.array([b"abcd", None], pa.binary(4))})
    with pytest.raises(ValueError, match="1 vectors are missing"):
        make_row_group("p", np.arange(2), table, None, {}, None, ["v"])


def test_vectors_of_a_slice_are_its_own() -> None:
    values = [np.array([index, -index], "<f2").tobytes() for index in range(5)]
    table = pa.table({"key": list("abcde"), "captions": [["x"]] * 5, "v": pa.array(values, pa.binary(4))}).slice(2, 2)
    part = make_row_group("p", np.arange(2), table, None, {}, None, ["v"])
    assert part.vectors["v"].tolist() == [[2, -2], [3, -3]] and part.vectors["v"].dtype == np.float16
