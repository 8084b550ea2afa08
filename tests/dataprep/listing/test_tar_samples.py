"""Samples of tars: the rule is webdataset's, and no sample is taken for two or made of two."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataprep.download.config import DownloadConfig
from dataprep.download.shard import download_shard
from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.parquet import read_table
from dataprep.listing.account import Account
from dataprep.listing.config import ListingConfig
from dataprep.listing.sources import check_source, list_rows
from dataprep.listing.tar_samples import split_member
from dataprep.listing.writer import write_listing
from tests.helpers.images import encoded, picture
from tests.helpers.tars import write_tar

IMAGE, MASK = encoded(picture(1)), encoded(picture(2))


def rows_of(path: Path, account: Account | None = None, **fields: Any) -> dict[str, dict[str, Any]]:
    config = ListingConfig(source="webdataset", path=str(path), **fields)
    rows = [row for table in list_rows(config, 0, account=account) for row in table.to_pylist()]
    for row in rows:
        row["bytes"] = storage.read_bytes(str((path if path.is_dir() else path.parent) / row["url"]))
    assert len({row["member"] for row in rows}) == len(rows)
    return {row["member"]: row for row in rows}


@pytest.mark.parametrize("order", [("jpg", "seg.png", "txt"), ("seg.png", "jpg", "txt"), ("txt", "seg.png", "jpg")])
def test_a_mask_is_not_taken_for_the_image(order: tuple[str, ...], tmp_path: Path) -> None:
    data = {"jpg": IMAGE, "seg.png": MASK, "txt": b"a house"}
    write_tar(tmp_path / "0.tar", [(f"a.{extension}", data[extension]) for extension in order])
    account = Account()
    row = rows_of(tmp_path / "0.tar", account)["a"]
    assert (row["bytes"], row["caption"]) == (IMAGE, "a house")
    assert account.named == {"other_images": ["0.tar: a.seg.png"]}
    assert rows_of(tmp_path / "0.tar", image_member="SEG.png")["a"]["bytes"] == MASK


def test_of_several_images_the_first_kind_is_taken_and_the_others_named(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "0.tar", [("a.png", MASK), ("a.jpg", IMAGE), ("a.txt", b"x"), ("b.PNG", IMAGE), ("b.TXT", b"y")]
    )
    account = Account()
    rows = rows_of(tmp_path / "0.tar", account)
    assert [row["bytes"] for row in rows.values()] == [IMAGE, IMAGE] and rows["b"]["caption"] == "y"
    assert account.named == {"other_images": ["0.tar: a.png"]}
    with_png = rows_of(tmp_path / "0.tar", image_member="png")
    assert [row["bytes"] for row in with_png.values()] == [MASK, IMAGE]
    assert rows_of(tmp_path / "0.tar", image_member="jpg")["b"]["reason"] == "incomplete"


def test_a_mask_alone_is_no_image(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.seg.png", MASK), ("a.txt", b"x"), ("b.jpg", IMAGE), ("b.txt", b"y")])
    row = rows_of(tmp_path / "0.tar")["a"]
    assert row["reason"] == "incomplete" and "only seg.png, txt; set listing.image_member" in row["error_message"]
    write_tar(tmp_path / "1.tar", [("a.seg.png", MASK), ("a.txt", b"x")])
    with pytest.raises(UserError, match=r"none of the 1 rows read can be used; .*only seg\.png, txt"):
        check_source(ListingConfig(source="webdataset", path=str(tmp_path / "1.tar")))


def test_samples_whose_members_do_not_follow_each_other(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpg", "c.jpg", "b.txt", "a.txt", "d.txt", "d.jpg"]
    write_tar(tmp_path / "0.tar", [(name, IMAGE if "jpg" in name else name.encode()) for name in names])
    account = Account()
    rows = rows_of(tmp_path / "0.tar", account)
    assert {name: row["caption"] for name, row in rows.items()} == {"a": "a.txt", "b": "b.txt", "c": "", "d": "d.txt"}
    assert all(row["bytes"] == IMAGE for row in rows.values())
    assert account.counts["joined_samples"] == 2 and account.records == 4


def test_names_that_recur_are_samples_of_their_own(tmp_path: Path) -> None:
    files = [("a.jpg", IMAGE), ("a.txt", b"one"), ("b.jpg", IMAGE), ("a.jpg", MASK), ("a.txt", b"two")]
    write_tar(tmp_path / "0.tar", [*files, ("a.txt", b"three")])
    config = ListingConfig(source="webdataset", path=str(tmp_path / "0.tar"))
    rows = [row for table in list_rows(config, 0) for row in table.to_pylist()]
    assert [(row["member"], row["caption"], row["reason"]) for row in rows] == [
        *[("b", "", None), ("a", "one", None), ("a", "two", None), ("a", "three", "incomplete")]
    ]
    found = [storage.read_bytes(str(tmp_path / row["url"])) for row in rows]
    assert found == [IMAGE, IMAGE, MASK, b""]


@pytest.mark.parametrize("name", ["a.jpg", "x/y.z/a.SEG.png", "./a.b.c", "x.y/a.txt", "__key__.txt", "图/é.TXT"])
def test_names_are_split_as_webdataset_does(name: str) -> None:
    webdataset = pytest.importorskip("webdataset")
    key, extension = webdataset.tariterators.base_plus_ext(name)
    assert split_member(name) == (key, extension.lower())


def test_samples_are_those_of_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    rng = np.random.default_rng(5)
    files = []
    for number in range(60):
        folder = rng.choice(["", "x/", "./", "x.y/"])
        kinds = ["jpg", "txt", "seg.png", "json", "JPG", "cls", "caption", "x.txt"]
        for kind in rng.permutation(kinds)[: rng.integers(1, 6)]:
            if kind == "JPG" and (f"{folder}{number}.jpg", IMAGE) in files:
                continue
            if kind == "jpg" and (f"{folder}{number}.JPG", IMAGE) in files:
                continue
            data = IMAGE if kind.lower() == "jpg" else b"{}" if kind == "json" else kind.encode()
            files.append((f"{folder}{number}.{kind}", data))
    write_tar(tmp_path / "0.tar", files)
    theirs = {item["__key__"]: item for item in webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False)}
    ours = rows_of(tmp_path / "0.tar")
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        assert row["bytes"] == theirs[key].get("jpg", b"")
        assert row["caption"].encode() == theirs[key].get("txt", theirs[key].get("caption", b""))
        assert (row["reason"] == "incomplete") == ("jpg" not in theirs[key])


@pytest.mark.parametrize("field", ["caption", "text", "TEXT", "alt", "title", "prompt"])
def test_the_json_calls_the_caption_as_tables_do(field: str, tmp_path: Path) -> None:
    described = json.dumps({field: "a house", "n": 1}).encode()
    write_tar(tmp_path / "0.tar", [("a.jpg", IMAGE), ("a.json", described)])
    assert rows_of(tmp_path / "0.tar")["a"]["caption"] == "a house"
    write_tar(tmp_path / "0.tar", [("a.jpg", IMAGE), ("a.txt", b" \n"), ("a.json", described)])
    assert rows_of(tmp_path / "0.tar")["a"]["caption"] == "a house"


@pytest.mark.parametrize(
    ("described", "captions", "reason"),
    [
        ({"caption": "", "text": "two"}, ["two"], None),
        ({"caption": None, "text": ["one", "two"]}, ["one", "two"], None),
        ({"caption": {"en": "x"}}, [""], "text"),
        ({"caption": float("nan")}, [""], None),
        ([], [""], "text"),
        ("{", [""], "text"),
    ],
)
def test_captions_in_json(described: Any, captions: list[str], reason: str | None, tmp_path: Path) -> None:
    data = described.encode() if isinstance(described, str) else json.dumps(described).encode()
    write_tar(tmp_path / "0.tar", [("a.jpg", IMAGE), ("a.json", data), ("b.jpg", IMAGE), ("b.txt", b"b")])
    row = rows_of(tmp_path / "0.tar")["a"]
    assert [row["caption"], row.get("caption_2")][: len(captions)] == captions and row.get("reason") == reason


def test_encodings_of_caption_files(tmp_path: Path) -> None:
    texts = {
        "a": "é".encode("utf-8-sig"),
        "b": "é x".encode("utf-16"),
        "c": b"caf\xe9 x",
        "d": "кошка".encode("cp1251"),
    }
    write_tar(
        tmp_path / "0.tar", [pair for k, text in texts.items() for pair in ((f"{k}.jpg", IMAGE), (f"{k}.txt", text))]
    )
    account = Account()
    rows = rows_of(tmp_path / "0.tar", account)
    assert {key: row["caption"] for key, row in rows.items()} == {"a": "é", "b": "é x", "c": "café x", "d": ""}
    assert rows["d"]["reason"] == "text" and "d.txt is not readable" in rows["d"]["error_message"]
    assert account.named == {"windows_1252": ["0.tar: c.txt"]}
    assert rows_of(tmp_path / "0.tar", encoding="cp1251")["d"]["caption"] == "кошка"


def test_hidden_and_odd_members_are_named_and_others_go_on(tmp_path: Path) -> None:
    hidden = ["._a.jpg", "__MACOSX/._b.jpg", "x/.DS_Store", "x/Thumbs.db"]
    write_tar(tmp_path / "0.tar", [("./a.jpg", IMAGE), ("./a.txt", b"a"), *[(name, b"x") for name in hidden]])
    with tarfile.open(tmp_path / "0.tar", "a") as tar:
        for name, kind in (("b.jpg", tarfile.SYMTYPE), ("c.jpg", tarfile.LNKTYPE), ("folder", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "./a.jpg"
            tar.addfile(member)
        latin = tarfile.TarInfo(os.fsdecode(b"caf\xe9.jpg"))
        latin.size = len(IMAGE)
        tar.addfile(latin, io.BytesIO(IMAGE))
        note = tarfile.TarInfo("README")
        tar.addfile(note, io.BytesIO(b""))
    account = Account()
    rows = rows_of(tmp_path / "0.tar", account)
    assert list(rows) == ["./a", "caf\\xe9"] and all(row["bytes"] == IMAGE for row in rows.values())
    assert account.named["hidden"] == [f"0.tar: {name}" for name in hidden]
    assert account.named["links"] == ["0.tar: b.jpg", "0.tar: c.jpg"]
    assert account.named["other_files"] == ["0.tar: README"]
    assert "._a" in rows_of(tmp_path / "0.tar", hidden_files=True)


def test_images_under_other_names(tmp_path: Path) -> None:
    jpeg = encoded(picture(), "JPEG")
    files = [("a.jfif", jpeg), ("b.JPE", jpeg), ("c.heic", b"\0\0\0\x18ftypheic" + b"\0" * 20), ("d.heic", jpeg)]
    files += [("e.avif", encoded(picture(), "AVIF")), ("f.nef", encoded(picture(), "TIFF"))]
    write_tar(
        tmp_path / "0.tar", [pair for file in files for pair in (file, (file[0].partition(".")[0] + ".txt", b"x"))]
    )
    (tmp_path / "l").mkdir()
    config = ListingConfig(source="webdataset", path=str(tmp_path / "0.tar"))
    assert write_listing(config, 0, tmp_path / "l")["reason_not_image"] == 2
    download_shard(tmp_path / "l" / "00000.parquet", 0, tmp_path / "l", DownloadConfig())
    rows = read_table(tmp_path / "l" / "00000.parquet", "download").to_pylist()
    assert [row["reason"] for row in rows] == [None, None, "not_image", None, None, "not_image"]
    assert "heic images are not read" in rows[2]["error_message"]
