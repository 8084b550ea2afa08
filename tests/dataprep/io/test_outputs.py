"""Where a command cannot write is told before it works, and nothing is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dataprep.io import outputs
from dataprep.io.errors import UserError
from dataprep.io.outputs import check_output_file, check_output_folder


def test_what_can_be_written_passes_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    check_output_file(tmp_path / "new.png")
    check_output_file(tmp_path / "old.png")
    check_output_file(tmp_path / "a" / "b" / "new.png")
    check_output_folder(tmp_path)
    check_output_folder(tmp_path / "a" / "b")
    check_output_file(Path("/dev/stdout"))
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == b"old"


@pytest.mark.parametrize("check", [check_output_file, check_output_folder])
def test_what_cannot_be_written_is_named(tmp_path: Path, check: object) -> None:
    assert callable(check)
    (tmp_path / "file").write_bytes(b"")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    for path, message in [
        (tmp_path / "file" / "x.png", "file is not a folder"),
        (tmp_path / "file" / "deep" / "x.png", "file is not a folder"),
        (tmp_path / "dangling" / "x.png", "dangling is not a folder"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / ("x" * 300) / "y.png", "File name too long"),
        (Path("/proc/x.png"), "cannot be written"),
        (Path("s3://bucket/x.png"), "is a URL"),
    ]:
        with pytest.raises(UserError, match=rf"--out .*{message}"):
            check(path)


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"--blind .*: is a folder"):
        check_output_file(tmp_path, "--blind")
    with pytest.raises(UserError, match=r"--out .*: is a file"):
        check_output_folder(tmp_path / "file")


def test_a_disk_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(outputs.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(UserError, match=r"x.png: cannot be written \(Permission denied\)"):
        check_output_file(tmp_path / "x.png")
    with pytest.raises(UserError, match="Permission denied"):
        check_output_folder(tmp_path)
