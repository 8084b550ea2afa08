"""Sample keys."""

from __future__ import annotations


def test_keys_are_those_of_img2dataset() -> None:
    from img2dataset.downloader import compute_key

    assert compute_key(12, 345, 4, 5) == f"{345:05d}{12:04d}"
