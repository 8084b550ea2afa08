"""Patterns, hidden names, links: which files a path stands for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from dataprep.listing.account import Account
from dataprep.listing.files import Found, expand_braces, find_matching_files, is_hidden, list_folder

HIDDEN = [
    ".Trash-1000/files/a.jpg",
    "._a.jpg",
    "x/._a.jpg",
    "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
    ".ipynb_checkpoints/a-checkpoint.jpg",
    "__MACOSX/x/._a.jpg",
    "Thumbs.db",
    "x/desktop.ini",
    ".DS_Store",
    "#recycle/a.jpg",
    "$RECYCLE.BIN/a.jpg",
    "lost+found/a.jpg",
    "System Volume Information/a.jpg",
    "~$list.csv",
]


def csvs(path: Path | str, account: Account | None = None, hidden: bool = False) -> list[str]:
    return find_matching_files(str(path), [(lambda name: name.endswith(".csv"), (".csv",))], account, hidden)


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_and_system_names(name: str) -> None:
    assert is_hidden(name)


@pytest.mark.parametrize(
    "name", ["a.jpg", "./a.jpg", "x/a..jpg", "thumbs/a.jpg", "trash/a.jpg", "a.DS_Store", "../a.jpg"]
)
def test_names_that_are_not_hidden(name: str) -> None:
    assert not is_hidden(name)


def test_hidden_files_are_left_out_counted_and_taken_on_request(tmp_path: Path) -> None:
    for name in (*HIDDEN, "a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    account = Account()
    assert list_folder(str(tmp_path), account) == [Found("a.jpg")]
    assert account.counts["hidden"] == len(account.named["hidden"]) == 14  # folders count once
    assert len(list_folder(str(tmp_path), Account(), hidden_files=True)) == len(HIDDEN) + 1


def test_a_hidden_folder_that_is_named_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "a.csv").touch()
    for path in (tmp_path / ".cache", tmp_path / ".cache" / "a.csv", tmp_path / ".cache" / "*.csv"):
        assert csvs(path) == [str(tmp_path / ".cache" / "a.csv")]


def test_hidden_lists_do_not_double_the_rows(tmp_path: Path) -> None:
    (tmp_path / ".ipynb_checkpoints").mkdir()
    for name in ("a.csv", "._a.csv", ".ipynb_checkpoints/a-checkpoint.csv", "note.md"):
        (tmp_path / name).touch()
    for path in (tmp_path, tmp_path / "**" / "*.csv", tmp_path / "*.csv"):
        account = Account()
        assert csvs(path, account) == [str(tmp_path / "a.csv")]
    assert csvs(tmp_path, account := Account()) and account.named["other_files"] == ["note.md"]
    assert account.named["hidden"] == [".ipynb_checkpoints/", "._a.csv"]
    assert len(csvs(tmp_path, hidden=True)) == 3


def test_patterns(tmp_path: Path) -> None:
    for index in range(4):
        (tmp_path / f"{index:05d}.csv").touch()
    files = [str(tmp_path / f"{index:05d}.csv") for index in range(4)]
    assert csvs(tmp_path / "{00000..00003}.csv") == files
    assert csvs(tmp_path / "0000[0-3].csv") == files
    assert csvs(tmp_path / "0000?.csv") == files
    assert csvs(tmp_path / "{00000,00002}.csv") == [files[0], files[2]]
    assert csvs(tmp_path / "0000{0..1}.*") == files[:2]
    with pytest.raises(UserError, match=r"00004\.csv: no such file"):
        csvs(tmp_path / "{00003..00004}.csv")
    with pytest.raises(UserError, match="no file matches"):
        csvs(tmp_path / "x[0-3].csv")


@pytest.mark.parametrize("name", ["list[1].csv", "what?.csv", "a*.csv", "{b}.csv", "{0..1}.csv", "#1 %20.csv"])
def test_names_that_look_like_patterns(name: str, tmp_path: Path) -> None:
    (tmp_path / "d[0]").mkdir()
    (tmp_path / "d[0]" / name).touch()
    (tmp_path / "d[0]" / "list1.csv").touch()
    assert csvs(tmp_path / "d[0]" / name) == [str(tmp_path / "d[0]" / name)]
    assert str(tmp_path / "d[0]" / name) in csvs(tmp_path / "d[0]")
    assert len(csvs(tmp_path / "d[0]" / "*.csv")) == 2


def test_braces() -> None:
    assert expand_braces("{a,b}{1..3}") == ["a1", "a2", "a3", "b1", "b2", "b3"]
    assert expand_braces("x{08..11}") == ["x08", "x09", "x10", "x11"]
    assert expand_braces("{2..0}") == ["2", "1", "0"]
    assert expand_braces("{00..04..2}") == ["00", "02", "04"]
    assert expand_braces("{x}") == ["{x}"]
    with pytest.raises(UserError, match="more than 1,000,000 files"):
        expand_braces("{0..9999999999}")


def test_links_and_odd_files(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "set" / "sub").mkdir(parents=True)
    (tmp_path / "real" / "b.jpg").touch()
    (tmp_path / "set" / "a.jpg").touch()
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "set" / "sub" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "set" / "round.jpg").symlink_to("round.jpg")
    os.mkfifo(tmp_path / "set" / "pipe.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path / "set") + b"/caf\xe9.jpg")).touch()
    account = Account()
    assert list_folder(str(tmp_path / "set"), account) == [
        Found("a.jpg"),
        Found("caf\\xe9.jpg", "the file name is not UTF-8; rename it"),
        Found("gone.jpg", "a link to a file that is not there"),
        Found("linked/b.jpg"),
        Found("pipe.jpg", "not a regular file"),
        Found("round.jpg", "not readable: Too many levels of symbolic links"),
    ]
    assert account.named == {"unreadable": ["sub/up: a link to a folder above it"]}


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.jpg").touch()
    scandir = os.scandir

    def refuse(path: str) -> object:  # the tests may run as root, to whom nothing is closed
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    account = Account()
    assert list_folder(str(tmp_path), account) == [Found("a.jpg")]
    assert account.named == {"unreadable": ["closed: Permission denied"]}
