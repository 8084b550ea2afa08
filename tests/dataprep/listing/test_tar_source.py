"""Tars as a source, and our own tars and tables read by other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataprep.annotate import annotate_shard
from dataprep.annotate_config import AnnotateConfig
from dataprep.download.config import DownloadConfig
from dataprep.download.shard import download_shard
from dataprep.io.errors import UserError
from dataprep.io.parquet import ROOT_KEY, read_table
from dataprep.listing.config import ListingConfig
from dataprep.listing.sources import check_source, find_source_files, list_rows
from dataprep.listing.writer import write_listing
from tests.helpers.images import encoded, picture
from tests.helpers.tars import write_tar

Files = list[tuple[str, bytes]]


def sample(key: str, image: bytes | None = None, text: str | None = "a house", **described: Any) -> Files:
    files: Files = [] if image is None else [(f"{key}.png", image)]
    files += [] if text is None else [(f"{key}.txt", text.encode())]
    return [*files, (f"{key}.json", json.dumps(described).encode())]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Two tars in two folders: two valid samples, one without an image, one with a broken image, and one whose
    extensions are v2.png and v2.txt, which are no image and no caption unless the config says so."""
    folder = tmp_path / "set"
    first = sample("000", encoded(picture(0)), "one", url="http://a/0", punsafe=0.25, width=5)
    first += sample("001", None, "no picture", url="http://a/1")
    write_tar(folder / "a" / "00000.tar", [("README", b"x"), *first])
    second = sample("x/002", encoded(picture(2, 120, 60)), None, caption="from json", url="http://a/2")
    second += sample("x/003", b"\x89PNG broken", "broken") + sample("x/004.v2", encoded(picture(4)), "four")
    write_tar(folder / "00001.tar", second)
    return folder


def test_samples_become_rows(tars: Path) -> None:
    config = ListingConfig(source="webdataset", path=str(tars))
    assert find_source_files(config) == [str(tars / "00001.tar"), str(tars / "a" / "00000.tar")]
    tables = list(list_rows(config, 0))
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["caption"] for row in rows] == ["from json", "broken", "", "one", "no picture"]
    assert [row["member"] for row in rows] == ["x/002", "x/003", "x/004", "000", "001"]
    assert rows[0]["source_url"] == "http://a/2" and rows[3]["source_url"] == "http://a/0"
    assert rows[3]["listed_unsafe"] == 0.25 and rows[3]["listed_width"] == 5.0
    assert all(table.schema.metadata[ROOT_KEY].decode() == str(tars) for table in tables)
    assert set(check_source(config)) >= {"url", "caption", "member"}


def test_tar_images_are_decoded_like_fetched_ones(tars: Path, tmp_path: Path) -> None:
    config = ListingConfig(source="webdataset", path=str(tars / "**" / "*.tar"))
    (tmp_path / "l").mkdir()
    counters = write_listing(config, 0, tmp_path / "l")
    assert counters == {
        "records": 5,
        "rows": 5,
        "shards": 1,
        "usable": 3,
        "reason_incomplete": 2,
        "other_files": 1,
        "other_images": 1,
    }
    download_shard(tmp_path / "l" / "00000.parquet", 0, tmp_path, DownloadConfig(encode_format="png", encode_quality=3))
    rows = {row["member"]: row for row in read_table(tmp_path / "00000.parquet", "download").to_pylist()}
    statuses = {name: row["status"] == "success" for name, row in rows.items()}
    assert statuses == {"x/002": True, "x/003": False, "x/004": False, "000": True, "001": False}
    assert all(rows[name]["error_message"] for name, good in statuses.items() if not good)
    assert (rows["x/002"]["original_width"], rows["x/002"]["original_height"]) == (120, 60)
    annotate_shard(tmp_path / "00000.tar", tmp_path / "00000.parquet", tmp_path / "a.parquet", AnnotateConfig())
    annotated = read_table(tmp_path / "a.parquet", "annotations").to_pylist()
    assert sum(row["ok"] for row in annotated) == 2


def test_pixels_come_through_unchanged(tmp_path: Path) -> None:
    image = picture(3, 40, 40)
    write_tar(tmp_path / "t" / "0.tar", sample("k", encoded(image)))
    write_listing(ListingConfig(source="webdataset", path=str(tmp_path / "t" / "0.tar")), 0, tmp_path)
    options = DownloadConfig(resize_mode="no", encode_format="png", encode_quality=3)
    download_shard(tmp_path / "00000.parquet", 0, tmp_path / "t", options)
    from dataprep.images.decode import read_shard_rgb

    ((_, stored),) = read_shard_rgb(tmp_path / "t" / "00000.tar")
    np.testing.assert_array_equal(stored, image)


@pytest.mark.parametrize("source", ["folder", "webdataset"])
def test_another_image_of_the_same_name_and_size_changes_the_listing(source: Any, tmp_path: Path) -> None:
    seen = set()
    for content in (b"one", b"two"):
        (tmp_path / "0.txt").write_text("a caption")
        (tmp_path / "0.png").write_bytes(content)
        write_tar(tmp_path / "0.tar", sample("k", content))
        (tmp_path / "out").mkdir(exist_ok=True)
        write_listing(ListingConfig(source=source, path=str(tmp_path)), 0, tmp_path / "out")
        seen.add((tmp_path / "out" / "00000.parquet").read_bytes())
        check = next(list_rows(ListingConfig(source=source, path=str(tmp_path)), 0, hashes=False))
        assert check["file_sha256"].null_count == 1
    assert len(seen) == 2


def test_a_caption_column_of_the_json_can_be_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", sample("k", b"", "a name", alt="a text"))
    config = ListingConfig(source="webdataset", path=str(path), caption_column="alt")
    assert next(list_rows(config, 0))["caption"].to_pylist() == ["a text"]
    with pytest.raises(UserError, match="caption_column 'alttt': no such column"):
        check_source(config.model_copy(update={"caption_column": "alttt"}))


def test_tars_that_cannot_be_read(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", sample("k", encoded(picture(0)))).read_bytes()
    broken = {
        "torn.tar": (whole[: len(whole) // 3], "not readable as an uncompressed tar"),
        "nothing.tar": (b"", "not readable as an uncompressed tar"),
        "text.tar": (b"x" * 600, "not readable as an uncompressed tar"),
    }
    for name, (data, message) in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message) as caught:
            list(list_rows(ListingConfig(source="webdataset", path=str(tmp_path / name)), 0))
        assert name in str(caught.value)
    write_tar(tmp_path / "zip.tar", sample("k", b""), "w:gz")
    write_tar(tmp_path / "json.tar", [("k.json", b"{")])
    write_tar(tmp_path / "list.tar", [("k.json", b"[]")])
    for name, message in (("zip.tar", "uncompressed"), ("json.tar", "k.json is not JSON"), ("list.tar", "JSON object")):
        with pytest.raises(UserError, match=message):
            check_source(ListingConfig(source="webdataset", path=str(tmp_path / name)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"the folder holds no .tar file"):
        find_source_files(ListingConfig(source="webdataset", path=str(tmp_path / "empty")))
    write_tar(tmp_path / "empty" / "0.tar", [])
    with pytest.raises(UserError, match="no rows"):
        check_source(ListingConfig(source="webdataset", path=str(tmp_path / "empty")))


# --------------------------------------------------------------- what is written, opened by what people have


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A download shard of three images and a failure."""
    folder = tmp_path_factory.mktemp("shard")
    for index in range(3):
        (folder / f"{index}.png").write_bytes(encoded(picture(index)))
        (folder / f"{index}.txt").write_text(f"caption {index}")
    (folder / "3.png").write_bytes(b"no picture")
    (folder / "out").mkdir()
    write_listing(ListingConfig(source="folder", path=str(folder)), 0, folder / "out")
    (folder / "d").mkdir()
    download_shard(folder / "out" / "00000.parquet", 0, folder / "d", DownloadConfig(image_size=32))
    return folder / "d"


def test_webdataset_reads_the_tar(shard: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset(str(shard / "00000.tar"), shardshuffle=False).decode("rgb8"))
    assert [item["txt"] for item in samples] == ["caption 0", "caption 1", "caption 2"]
    assert [item["json"]["key"] for item in samples] == [item["__key__"] for item in samples]
    assert samples[0]["jpg"].shape == (32, 38, 3)


def test_pandas_reads_the_table(shard: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(shard / "00000.parquet")
    assert list(frame.status == "success") == [True, True, True, False]
    assert list(frame.caption[:3]) == ["caption 0", "caption 1", "caption 2"]


def test_duckdb_reads_the_table(shard: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    query = f"SELECT status, count(*) FROM '{shard}/*.parquet' GROUP BY status ORDER BY count(*) DESC"
    assert duckdb.sql(query).fetchall() == [("success", 3), ("failed_to_resize", 1)]


def test_hugging_face_datasets_reads_both(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    cache = {"split": "train", "cache_dir": str(tmp_path)}
    rows = datasets.load_dataset("parquet", data_files=str(shard / "00000.parquet"), **cache)
    assert rows["status"][:3] == ["success"] * 3 and rows.num_rows == 4
    pairs = datasets.load_dataset("webdataset", data_files=str(shard / "00000.tar"), **cache)
    assert [pair["txt"] for pair in pairs] == ["caption 0", "caption 1", "caption 2"]
    assert pairs[0]["jpg"].size == (38, 32)
