"""Decoding of stored images."""

from __future__ import annotations

import pytest

from train.loader.row_group import decode_pixels


def test_bad_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="raw 16x16"):
        decode_pixels(b"123", "raw", (16, 16))
    with pytest.raises(ValueError, match="16x16 png"):
        decode_pixels(b"123", "png", (16, 16))
