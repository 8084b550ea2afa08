"""A file that a user names is read, or the reason is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.inputs import read_input


def test_an_input_is_read_or_the_reason_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"text")
    assert read_input(str(tmp_path / "a"), "--file", "give one") == b"text"
    for path, reason in [(tmp_path, "is a folder"), (tmp_path / "b", "no such file"), (tmp_path / "a/b", "no such")]:
        with pytest.raises(UserError, match=rf"--file={path}: {reason}.*; give one"):
            read_input(str(path), "--file", "give one")

    def refuse(path: str) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\); give one"):
        read_input(str(tmp_path / "a"), "--file", "give one")
