"""Image formats."""

from __future__ import annotations

import pytest

from dataprep.images.formats import is_image
from tests.helpers.images import encoded, picture


@pytest.mark.parametrize(
    ("head", "known"),
    [
        (encoded(picture(), "JPEG")[:16], True),
        (encoded(picture(), "PNG")[:16], True),
        (encoded(picture(), "WEBP")[:16], True),
        (encoded(picture(), "GIF")[:16], True),
        (encoded(picture(), "BMP")[:16], True),
        (encoded(picture(), "TIFF")[:16], True),
        (b"RIFF\0\0\0\0WAVEfmt ", False),
        (b"<svg xmlns='http", False),
        (b"<!DOCTYPE html>", False),
        (b"%PDF-1.7", False),
        (b"\xff\xd8", False),
        (b"", False),
    ],
)
def test_formats_are_known_by_their_first_bytes(head: bytes, known: bool) -> None:
    assert is_image(head) is known
