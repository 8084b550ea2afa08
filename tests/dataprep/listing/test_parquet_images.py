"""Parquet with the images inside, in the form of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprep.download.config import DownloadConfig
from dataprep.download.shard import download_shard
from dataprep.io.errors import UserError
from dataprep.io.parquet import ROOT_KEY, read_table
from dataprep.io.parquet_cells import CellReader, cell_path
from dataprep.listing.sources import check_source, find_source_files, list_rows
from dataprep.listing.writer import write_listing
from tests.helpers.images import encoded, picture
from tests.helpers.lists import table_config, write_csv

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write_images(path: Path, first: int, count: int, group: int = 3, **columns: Any) -> Path:
    cells = [{"bytes": encoded(picture(first + row)), "path": f"{first + row}.png"} for row in range(count)]
    texts = {"text": [f"caption {first + row}" for row in range(count)]}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(cells, IMAGE), **texts, **columns}), path, row_group_size=group)
    return path


def test_images_come_without_download(tmp_path: Path) -> None:
    write_images(tmp_path / "set" / "data" / "train-00000-of-00002.parquet", 0, 7)
    write_images(tmp_path / "set" / "data" / "train-00001-of-00002.parquet", 7, 4)
    (tmp_path / "set" / "README.md").touch()
    config = table_config(tmp_path / "set", rows_per_shard=6)
    assert len(find_source_files(config)) == 2
    assert set(check_source(config)) == {"url", "caption", "image_path", "file_sha256"}
    (tmp_path / "l").mkdir()
    counters = write_listing(config, 0, tmp_path / "l")
    assert (counters["rows"], counters["usable"], counters["other_files"]) == (11, 11, 1)
    rows = []
    for shard in range(2):
        download_shard(tmp_path / "l" / f"0000{shard}.parquet", shard, tmp_path, DownloadConfig(image_size=32))
        rows += read_table(tmp_path / f"0000{shard}.parquet", "download").to_pylist()
    assert [row["caption"] for row in rows] == [f"caption {index}" for index in range(11)]
    assert [row["image_path"] for row in rows] == [f"{index}.png" for index in range(11)]
    assert {row["status"] for row in rows} == {"success"}
    assert [row["original_bytes"] for row in rows] == [len(encoded(picture(index))) for index in range(11)]
    assert rows[8]["url"] == "train-00001-of-00002.parquet#image:1"


def test_every_row_gets_its_own_image_in_any_order(tmp_path: Path) -> None:
    path = str(write_images(tmp_path / "l.parquet", 0, 40, group=7))
    reader = CellReader()
    for row in (0, 1, 39, 3, 3, 20, 21, 35, 0):
        assert reader.read(cell_path(path, "image", row)) == encoded(picture(row))
    with pytest.raises(OSError, match="holds no bytes"):
        reader.read(cell_path(path, "image", 40))
    with pytest.raises(OSError, match="not readable"):
        reader.read(cell_path(path, "picture", 0))
    reader.close()


def test_columns_of_bytes_large_bytes_and_other_names(tmp_path: Path) -> None:
    image = encoded(picture())
    for name, kind in [("jpg", pa.binary()), ("image", pa.large_binary()), ("photo", IMAGE)]:
        cells = [image if kind != IMAGE else {"bytes": image, "path": None}]
        pq.write_table(pa.table({name: pa.array(cells, kind), "caption": ["a"]}), tmp_path / "l.parquet")
        (table,) = list_rows(table_config(tmp_path / "l.parquet"), 0)
        assert table["url"].to_pylist() == [f"l.parquet#{name}:0"]
        assert table.schema.metadata[ROOT_KEY] == str(tmp_path).encode()


def test_a_cell_without_image_has_a_reason_and_the_others_go_on(tmp_path: Path) -> None:
    cells = [{"bytes": None, "path": "../../etc/passwd"}, {"bytes": encoded(picture()), "path": None}, None]
    pq.write_table(pa.table({"image": pa.array(cells, IMAGE), "text": ["a", "b", "c"]}), tmp_path / "l.parquet")
    (tmp_path / "l").mkdir()
    write_listing(table_config(tmp_path / "l.parquet"), 0, tmp_path / "l")
    download_shard(tmp_path / "l" / "00000.parquet", 0, tmp_path / "l", DownloadConfig())
    rows = read_table(tmp_path / "l" / "00000.parquet", "download").to_pylist()
    assert [row["reason"] for row in rows] == ["file", None, "file"]


def test_urls_and_images_do_not_mix(tmp_path: Path) -> None:
    """A listing with a folder reads files: a third party's URL column must not get into it."""
    write_images(tmp_path / "1.parquet", 0, 2, url=["http://a/1", "http://a/2"])
    write_csv(tmp_path / "2.csv")
    with pytest.raises(UserError, match=r"1\.parquet has the images inside and .*2\.csv has URLs"):
        list(list_rows(table_config(tmp_path), 0))
    (table,) = list_rows(table_config(tmp_path / "1.parquet", url_column="url"), 0)
    assert table["url"].to_pylist() == ["http://a/1", "http://a/2"] and ROOT_KEY not in (table.schema.metadata or {})


def test_it_is_what_the_datasets_library_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    data = {"image": [Image.fromarray(picture(index)) for index in range(3)], "text": ["a", "b", "c"]}
    datasets.Dataset.from_dict(data, features=features).to_parquet(str(tmp_path / "l.parquet"))
    (tmp_path / "l").mkdir()
    write_listing(table_config(tmp_path / "l.parquet"), 0, tmp_path / "l")
    counters = download_shard(tmp_path / "l" / "00000.parquet", 0, tmp_path / "l", DownloadConfig())
    assert counters["success"] == 3
