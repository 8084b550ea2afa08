"""Cached hashes of source files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dataprep.io import storage
from pipeline.store.file_hashes import UNREADABLE, SourceHashes
from pipeline.store.run import Run


def test_a_source_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = tmp_path / "list.csv", Run(str(tmp_path / "run"))
    read: list[str] = []
    original = storage.sha256_file

    def record_read(name: str) -> tuple[str, int]:
        read.append(name)
        return original(name)

    monkeypatch.setattr(storage, "sha256_file", record_read)
    path.write_text("one")
    recent = SourceHashes(run)
    first = recent.hash_files([str(path)])
    assert recent.hash_files([str(path)]) == first
    assert len(read) == 2  # changed too recently to be cached
    os.utime(path, (1e9, 1e9))
    settled = SourceHashes(run)
    settled.hash_files([str(path)])
    settled.save()
    assert SourceHashes(run).hash_files([str(path)]) == first
    assert len(read) == 3
    path.write_text("two")
    assert SourceHashes(run).hash_files([str(path)]) != first


def test_a_source_that_cannot_be_read_changes_when_it_can(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("later.jpg")
    path, run = str(tmp_path / "a.jpg"), Run(str(tmp_path / "run"))
    assert SourceHashes(run).hash_files([path]) == {path: UNREADABLE}
    (tmp_path / "later.jpg").touch()
    assert SourceHashes(run).hash_files([path])[path] != UNREADABLE
