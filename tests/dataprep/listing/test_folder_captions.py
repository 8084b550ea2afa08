"""Captions of folders, matched as people mean them, and what matches nothing."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprep.download.config import DownloadConfig
from dataprep.download.shard import download_shard
from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.parquet import read_table
from dataprep.listing.account import Account
from dataprep.listing.config import ListingConfig
from dataprep.listing.sources import find_source_files, list_rows
from dataprep.listing.writer import write_listing
from tests.helpers.images import encoded, picture

JPEG = encoded(picture(), "JPEG")


def make(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)
    return folder


def rows_of(folder: Path, account: Account | None = None, **fields: Any) -> dict[str, dict[str, Any]]:
    config = ListingConfig(source="folder", path=str(folder), **fields)
    rows = [row for table in list_rows(config, 0, account=account) for row in table.to_pylist()]
    assert len({row["url"] for row in rows}) == len(rows)
    return {row["url"]: row for row in rows}


def captions_of(folder: Path, **fields: Any) -> dict[str, str]:
    return {name: row["caption"] for name, row in rows_of(folder, **fields).items()}


@pytest.mark.parametrize(
    ("image", "file", "text"),
    [
        ("P.JPG", "P.TXT", "x"),
        ("p.jpg", "P.txt", "x"),
        ("P.JPG", "p.Caption", "x"),
        ("x/a.b.jpg", "x/a.b.txt", "x"),
        ("a.jpg", "a.jpg.txt", "x"),
        ("a.JPG", "a.jpg.TXT", "x"),
        ("a.jpg", "a.json", '{"caption": "x"}'),
        ("a.jpg", "a.json", '{"width": 3, "Text": "x"}'),
        (unicodedata.normalize("NFD", "é.jpg"), unicodedata.normalize("NFC", "é.txt"), "x"),
        (unicodedata.normalize("NFC", "é.jpg"), unicodedata.normalize("NFD", "é.txt"), "x"),
        ("a b #1.jpg", "a b #1.txt", "x"),
        ("labels.jpg", "labels.txt", "x"),
        ("images/a.jpg", "captions/a.txt", "x"),
        ("set/Images/b/a.jpg", "set/txt/b/A.txt", "x"),
        ("a.jpg", "captions/a.txt", "x"),
        ("images/a.jpg", "a.txt", "x"),
    ],
)
def test_the_file_beside(image: str, file: str, text: str, tmp_path: Path) -> None:
    make(tmp_path, {image: JPEG, file: text})
    assert captions_of(tmp_path) == {image: "x"}


def test_names_that_differ_in_case_alone_keep_their_own(tmp_path: Path) -> None:
    make(tmp_path, {"a.jpg": JPEG, "A.jpg": JPEG, "a.txt": "small", "A.txt": "large"})
    assert captions_of(tmp_path) == {"A.jpg": "large", "a.jpg": "small"}


TABLES = [
    ("captions.csv", "file_name,text\n{},x\n"),
    ("metadata.csv", "file_name,text\n{},x\n"),
    ("Metadata.CSV", "File_Name, Caption\n{}, x\n"),
    ("captions.csv", "{},x\n"),
    ("captions.csv", "File Name,Alt Text\n{},x\n"),
    ("captions.tsv", "file\tcaption\n{}\tx\n"),
    ("captions.csv", "file_name;text\n{};x\n"),
    ("captions.txt", "image,caption\n{},x\n"),
    ("metadata.jsonl", '{{"file_name": "{}", "text": "x"}}\n'),
    ("captions.json", '[{{"file": "{}", "text": "x"}}]\n'),
]


@pytest.mark.parametrize(("table", "text"), TABLES)
@pytest.mark.parametrize("named", ["p.jpg", "./p.jpg", "p", "P.JPG", "images/p.jpg", "/p.jpg", " p.jpg", "%70.jpg"])
def test_tables_and_the_names_in_them(table: str, text: str, named: str, tmp_path: Path) -> None:
    if text.startswith("{},") and not named.lower().strip().endswith(".jpg"):
        pytest.skip("without a header a line is known by the name of an image file")
    make(tmp_path, {"p.jpg": JPEG, table: text.format(named)})
    assert captions_of(tmp_path) == {"p.jpg": "x"}


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ("sub/metadata.jsonl", "p.jpg"),
        ("sub/metadata.jsonl", "./p"),
        ("sub/metadata.jsonl", "sub/p.jpg"),
        ("metadata.jsonl", "sub/p.jpg"),
        ("metadata.jsonl", "sub\\\\p.jpg"),
        ("metadata.jsonl", "p.jpg"),
        ("other/metadata.jsonl", "../sub/p.jpg"),
    ],
)
def test_tables_in_any_folder(table: str, named: str, tmp_path: Path) -> None:
    make(tmp_path, {"sub/p.jpg": JPEG, "q.jpg": JPEG, table: f'{{"file_name": "{named}", "text": "x"}}'})
    assert captions_of(tmp_path) == {"sub/p.jpg": "x", "q.jpg": ""}


def test_a_table_names_its_images_by_absolute_path_or_as_parquet(tmp_path: Path) -> None:
    make(tmp_path, {"p.jpg": JPEG, "captions.csv": f"file_name,text\n{tmp_path}/p.jpg,x\n"})
    assert captions_of(tmp_path) == {"p.jpg": "x"}
    (tmp_path / "captions.csv").unlink()
    pq.write_table(pa.table({"file_name": ["p.jpg"], "text": ["y"]}), tmp_path / "metadata.parquet")
    assert captions_of(tmp_path) == {"p.jpg": "y"}


def test_unicode_names_of_a_table(tmp_path: Path) -> None:
    for disk, listed in (("NFD", "NFC"), ("NFC", "NFD")):
        name = unicodedata.normalize(disk, "Ünïcödé.jpg")  # type: ignore[arg-type]
        line = unicodedata.normalize(listed, "Ünïcödé.jpg")  # type: ignore[arg-type]
        folder = make(tmp_path / disk, {name: JPEG, "captions.csv": f"file_name,text\n{line},x\n"})
        assert captions_of(folder) == {name: "x"}


def test_what_matches_nothing_is_a_row_with_a_reason(tmp_path: Path) -> None:
    lines = "file_name,text\na.jpg,one\ngone.jpg,two\n,three\ncat,four\n"
    images = dict.fromkeys(("a.jpg", "b.jpg", "x/cat.jpg", "y/cat.png"), JPEG)
    make(tmp_path, {**images, "captions.csv": lines, "lost.txt": "lost", "b.txt": "five", "a.txt": "other"})
    account = Account()
    rows = rows_of(tmp_path, account)
    assert {name: row["caption"] for name, row in rows.items()} == {
        "a.jpg": "one",
        "b.jpg": "five",
        "x/cat.jpg": "",
        "y/cat.png": "",
        "lost.txt": "",
        "gone.jpg": "two",
        "captions.csv": "three",
        "cat": "four",
    }
    assert [row["error_message"] for row in rows.values() if row["reason"] == "incomplete"] == [
        "a caption file without an image",
        "captions.csv: the folder has no such image",
        "captions.csv: no file is named",
        "captions.csv: the line may mean x/cat.jpg or y/cat.png; write the whole name",
    ]
    assert account.records == 8 and account.named == {"other_captions": ["a.txt"]}
    (tmp_path / "l").mkdir()
    counters = write_listing(ListingConfig(source="folder", path=str(tmp_path)), 0, tmp_path / "l")
    assert (counters["rows"], counters["usable"], counters["reason_incomplete"]) == (8, 4, 4)
    assert counters["without_caption"] == 2
    download_shard(tmp_path / "l" / "00000.parquet", 0, tmp_path / "l", DownloadConfig())
    done = read_table(tmp_path / "l" / "00000.parquet", "download").to_pylist()
    assert [row["reason"] for row in done] == [None] * 4 + ["incomplete"] * 4
    assert [row["error_message"] for row in done] == [row["error_message"] for row in rows.values()]


def test_several_lines_of_an_image_are_several_captions(tmp_path: Path) -> None:
    make(tmp_path, {"a.jpg": JPEG, "captions.txt": "image,caption\na.jpg,one\na.jpg,two\na.jpg,one\n"})
    row = rows_of(tmp_path)["a.jpg"]
    assert (row["caption"], row["caption_2"]) == ("one", "two") and "caption_3" not in row


def test_caption_files_in_any_encoding(tmp_path: Path) -> None:
    texts = {
        "a": "é".encode("utf-8-sig"),
        "b": "é x".encode("utf-16"),
        "c": b"caf\xe9 x",
        "d": "кошка".encode("cp1251"),
    }
    texts |= {"e": b"nul\0", "f": "é".encode("utf-16-le")}
    make(tmp_path, {**{f"{key}.jpg": JPEG for key in texts}, **{f"{key}.txt": text for key, text in texts.items()}})
    account = Account()
    rows = rows_of(tmp_path, account)
    assert [row["caption"] for row in rows.values()] == ["é", "é x", "café x", "", "", ""]
    assert [row["reason"] for row in rows.values()] == [None, None, None, "text", "text", "text"]
    assert rows["d.jpg"]["error_message"].startswith("d.txt: neither UTF-8 nor Windows-1252")
    assert account.named == {"windows_1252": ["c.txt"]}


def test_images_under_any_name(tmp_path: Path) -> None:
    files = {"a.jfif": JPEG, "b.JPE": JPEG, "c": JPEG, "d.img": JPEG, "e.heic": JPEG, "f.bak.jpg_large": JPEG}
    files |= {"g.avif": encoded(picture(), "AVIF"), "h.jp2": encoded(picture(), "JPEG2000")}
    files |= {"i.ppm": encoded(picture(), "PPM"), "j.png": JPEG}
    unread = {
        "k.heic": b"\0\0\0\x18ftypheic" + b"\0" * 40,
        "l.jxl": b"\xff\x0a" + b"\0" * 40,
        "m.dng": b"II*\0" + b"\0" * 40,
    }
    others = {"film.mp4": b"\0\0\0\x18ftypisom", "notes.md": b"BMW", "data.csv": b"a,b", "x.zip": b"PK"}
    folder = make(tmp_path / "set", {**files, **unread, **others, "a.txt": b"x"})
    (tmp_path / "l").mkdir()
    counters = write_listing(ListingConfig(source="folder", path=str(folder)), 0, tmp_path / "l")
    assert (counters["rows"], counters["reason_not_image"], counters["other_files"]) == (13, 3, 4)
    named = json.loads((tmp_path / "l" / "account.json").read_text())["named"]
    assert named == {"other_files": ["data.csv", "film.mp4", "notes.md", "x.zip"]}
    download_shard(tmp_path / "l" / "00000.parquet", 0, tmp_path / "l", DownloadConfig())
    done = {row["url"]: row for row in read_table(tmp_path / "l" / "00000.parquet", "download").to_pylist()}
    assert {name: row["reason"] for name, row in done.items()} == {
        **dict.fromkeys(files, None),
        **dict.fromkeys(unread, "not_image"),
    }
    assert done["k.heic"]["error_message"] == "heic images are not read; convert them to jpg or png"


def test_files_that_cannot_be_read_have_a_reason_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "set", {"a.jpg": JPEG, "a.txt": "x", "b.jpg": JPEG, "c.jpg": JPEG})
    (folder / "b.txt").symlink_to("nowhere")
    (folder / "d.jpg").symlink_to("nowhere")
    os.mkfifo(folder / "e.jpg")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")).write_bytes(JPEG)
    hashed = storage.sha256_file

    def refuse(path: str) -> tuple[str, int]:  # the tests may run as root, to whom nothing is closed
        if path.endswith("c.jpg"):
            raise PermissionError(13, "Permission denied")
        return hashed(path)

    monkeypatch.setattr(storage, "sha256_file", refuse)
    rows = rows_of(folder)
    assert {name: (row["reason"], row["error_message"]) for name, row in rows.items()} == {
        "a.jpg": (None, None),
        "b.jpg": ("text", "b.txt: a link to a file that is not there"),
        "c.jpg": ("file", "not readable: Permission denied"),
        "caf\\xe9.jpg": ("file", "the file name is not UTF-8; rename it"),
        "d.jpg": ("file", "a link to a file that is not there"),
        "e.jpg": ("file", "not a regular file"),
    }
    config = ListingConfig(source="folder", path=str(folder))
    assert len(find_source_files(config)) == 7 and all(name.isprintable() for name in find_source_files(config))


def test_a_captions_table_without_the_columns_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, {"a.jpg": JPEG, "captions.csv": "x,y\n1,2\n"})
    with pytest.raises(
        UserError, match=r"in captions\.csv, which has x, y; call the one of file names file_name, or put"
    ):
        rows_of(tmp_path)


@pytest.mark.parametrize("name", ["labels.txt", "metadata.json", "labels.csv", "Captions.txt"])
def test_files_that_only_may_be_captions_tables_are_left_out(name: str, tmp_path: Path) -> None:
    make(tmp_path, {"a.jpg": JPEG, "a.txt": "x", name: "cat\ndog\n"})
    account = Account()
    assert list(rows_of(tmp_path, account)) == ["a.jpg"] and account.named == {"other_files": [name]}


def test_caption_folders_do_not_mix_up_subfolders(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "images/1/a.jpg": JPEG,
        "images/2/a.jpg": JPEG,
        "captions/1/a.txt": "one",
        "captions/a.txt": "none",
    }
    make(tmp_path, files)
    assert captions_of(tmp_path) == {"images/1/a.jpg": "one", "images/2/a.jpg": "", "captions/a.txt": ""}
