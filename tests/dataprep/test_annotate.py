from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dataprep.annotate import (
    annotate_shard,
    compute_alpha_share,
    compute_thumbnail,
    count_words,
)
from dataprep.annotate_config import AnnotateConfig
from dataprep.download.config import DownloadConfig, FetchConfig
from dataprep.download.shard import download_shard
from dataprep.images.decode import decode_rgb
from dataprep.images.faces import FacesConfig
from dataprep.images.text_area import TextConfig, load_text_detector
from dataprep.io.parquet import read_table, write_table
from tests.helpers.images import draw_face, encoded, picture
from tests.helpers.text_networks import write_db_network
from tests.helpers.web import Web


@pytest.fixture
def shard(web: Web, tmp_path: Path) -> tuple[Path, Path]:
    urls = [web.put("/0.png", encoded(picture(0, 200, 100))), web.url("/gone"), web.put("/2.png", encoded(picture(1)))]
    captions = ["a wooden house by the lake", "这是一张图", "两个小的红色圆形在蓝色正方形的左边"]
    write_table(pa.table({"url": urls, "caption": captions}), tmp_path / "l.parquet", "listing")
    config = DownloadConfig(fetch=FetchConfig(retries=0), image_size=64)
    download_shard(tmp_path / "l.parquet", 0, tmp_path, config, web.hosts)
    return tmp_path / "00000.tar", tmp_path / "00000.parquet"


def test_annotations_are_row_aligned(shard: tuple[Path, Path], tmp_path: Path) -> None:
    assert annotate_shard(*shard, tmp_path / "a.parquet", AnnotateConfig()) == {"rows": 3, "ok": 2, "without_image": 1}
    rows = read_table(tmp_path / "a.parquet", "annotations").to_pylist()
    download = read_table(shard[1], "download").to_pylist()
    assert [row["key"] for row in rows] == [row["key"] for row in download]
    assert [row["sha256"] for row in rows] == [row["sha256"] for row in download]
    assert (rows[0]["width"], rows[0]["height"], rows[0]["aspect"]) == (200, 100, 2.0)
    assert rows[0]["bytes"] > 0 and 0 <= rows[0]["phash"] < 2**64 and len(rows[0]["thumbnail"]) == 192
    assert [row["language"] for row in rows] == ["en", "zh", "zh"]
    assert not rows[1]["ok"] and rows[1]["phash"] is None and rows[1]["aspect"] is None


def test_a_rerun_writes_the_same_bytes(shard: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        annotate_shard(*shard, tmp_path / name, AnnotateConfig())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_tar_of_another_table_is_refused(shard: tuple[Path, Path], tmp_path: Path) -> None:
    table = read_table(shard[1], "download")
    write_table(table.set_column(0, "key", pa.array(["x", "y", "z"])), tmp_path / "other.parquet", "download")
    with pytest.raises(ValueError, match="download the shard again"):
        annotate_shard(shard[0], tmp_path / "other.parquet", tmp_path / "a.parquet", AnnotateConfig())


def test_a_thumbnail_is_the_mean_colour_of_each_cell() -> None:
    image = picture(3, 200, 200)
    cells = np.frombuffer(compute_thumbnail(image), np.uint8).reshape(8, 8, 3)
    assert abs(cells.mean() - image.mean()) < 2


@pytest.mark.parametrize(
    ("caption", "words", "share"),
    [("", 0, 0.0), ("two  words", 2, 1.0), ("两只 cats", 3, 1.0), ("IMG_1234", 1, 3 / 8), ("नमस्ते", 1, 1.0)],
)
def test_caption_statistics(caption: str, words: list[str], share: Any) -> None:
    assert count_words(caption) == words
    assert compute_alpha_share(caption) == pytest.approx(share)


def test_faces_are_columns_where_they_are_looked_for(web: Web, tmp_path: Path) -> None:
    image = picture(0, 200, 100)
    image[2:98, 50:146] = draw_face(96)
    urls = [web.put("/face.png", encoded(image)), web.url("/gone"), web.put("/none.png", encoded(picture(1)))]
    write_table(pa.table({"url": urls, "caption": ["a", "b", "c"]}), tmp_path / "l.parquet", "listing")
    config = DownloadConfig(fetch=FetchConfig(retries=0), image_size=100, encode_format="png", encode_quality=1)
    download_shard(tmp_path / "l.parquet", 0, tmp_path, config, web.hosts)
    files = tmp_path / "00000.tar", tmp_path / "00000.parquet"
    annotate_shard(*files, tmp_path / "a.parquet", AnnotateConfig(faces=FacesConfig()))
    rows = read_table(tmp_path / "a.parquet", "annotations").to_pylist()
    assert [row["faces"] for row in rows] == [1, None, 0]
    assert rows[0]["face_boxes"][0] == pytest.approx([0.25, 0.02, 0.73, 0.98], abs=0.1)
    assert rows[0]["largest_face"] == pytest.approx(0.46, abs=0.1)
    assert (rows[1]["face_boxes"], rows[1]["largest_face"]) == (None, None)
    assert (rows[2]["face_boxes"], rows[2]["largest_face"]) == ([], 0.0)
    annotate_shard(*files, tmp_path / "b.parquet", AnnotateConfig())
    assert "faces" not in read_table(tmp_path / "b.parquet", "annotations").column_names


def test_text_is_a_column_where_it_is_looked_for(shard: tuple[Path, Path], tmp_path: Path) -> None:
    config = AnnotateConfig(text=TextConfig(model=str(write_db_network(tmp_path / "db.onnx", 64)), side=64))
    annotate_shard(*shard, tmp_path / "a.parquet", config)
    table = read_table(tmp_path / "a.parquet", "annotations")
    assert table.schema.field("text_area").type == pa.float32()
    with tarfile.open(shard[0]) as tar:
        images = [tar.extractfile(name) for name in tar.getnames() if name.endswith(".jpg")]
        pixels = [decode_rgb(file.read()) for file in images if file is not None]
    expected = [load_text_detector(config.text).measure(image) for image in pixels] if config.text else []
    assert table["text_area"].to_pylist() == pytest.approx([expected[0], None, expected[1]])
    annotate_shard(*shard, tmp_path / "b.parquet", AnnotateConfig())
    assert "text_area" not in read_table(tmp_path / "b.parquet", "annotations").column_names
