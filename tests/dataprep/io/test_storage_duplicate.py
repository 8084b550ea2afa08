"""Copies of files within a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.io import storage


@pytest.mark.parametrize("root", ["{tmp}/", "memory://duplicates/"])
def test_a_duplicate_is_the_same_file(tmp_path: Path, root: str) -> None:
    source, target = root.format(tmp=tmp_path) + "a/x.bin", root.format(tmp=tmp_path) + "b/x.bin"
    storage.write_bytes(source, b"12345")
    for _ in range(2):
        storage.duplicate(source, target)
    assert storage.read_bytes(target) == b"12345"
    assert storage.size(target) == 5
    assert storage.size(target + "x") is None
    storage.write_bytes(source, b"other")  # replaced, not written into
    assert storage.read_bytes(target) == b"12345"
    assert storage.list_folders(root.format(tmp=tmp_path)) == ["a", "b"]
