from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from picture_fakes import encoded, picture
from pydantic import ValidationError

from dataprep.annotate import AnnotateConfig, alpha_share, annotate_shard, count_words, perceptual_hash, thumbnail
from dataprep.download import DownloadConfig, download_shard
from dataprep.fetch import FetchConfig
from dataprep.schema import read_table, write_table


@pytest.fixture
def shard(web, tmp_path):
    urls = [web.put("/0.png", encoded(picture(0, 200, 100))), web.url("/gone"), web.put("/2.png", encoded(picture(1)))]
    captions = ["a wooden house by the lake", "这是一张图", "两个小的红色圆形在蓝色正方形的左边"]
    write_table(pa.table({"url": urls, "caption": captions}), tmp_path / "l.parquet", "listing")
    config = DownloadConfig(fetch=FetchConfig(retries=0), image_size=64)
    download_shard(tmp_path / "l.parquet", 0, tmp_path, config, web.hosts)
    return tmp_path / "00000.tar", tmp_path / "00000.parquet"


def test_annotations_are_row_aligned(shard, tmp_path):
    assert annotate_shard(*shard, tmp_path / "a.parquet", AnnotateConfig()) == {"rows": 3, "ok": 2}
    rows = read_table(tmp_path / "a.parquet", "annotations").to_pylist()
    download = read_table(shard[1], "download").to_pylist()
    assert [row["key"] for row in rows] == [row["key"] for row in download]
    assert [row["sha256"] for row in rows] == [row["sha256"] for row in download]
    assert (rows[0]["width"], rows[0]["height"], rows[0]["aspect"]) == (200, 100, 2.0)
    assert rows[0]["bytes"] > 0 and 0 <= rows[0]["phash"] < 2**64 and len(rows[0]["thumbnail"]) == 192
    assert [row["language"] for row in rows] == ["en", "zh", "zh"]
    assert not rows[1]["ok"] and rows[1]["phash"] is None and rows[1]["aspect"] is None


def test_a_rerun_writes_the_same_bytes(shard, tmp_path):
    for name in ("a", "b"):
        annotate_shard(*shard, tmp_path / name, AnnotateConfig())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_tar_of_another_table_is_refused(shard, tmp_path):
    table = read_table(shard[1], "download")
    write_table(table.set_column(0, "key", pa.array(["x", "y", "z"])), tmp_path / "other.parquet", "download")
    with pytest.raises(ValueError, match="download the shard again"):
        annotate_shard(shard[0], tmp_path / "other.parquet", tmp_path / "a.parquet", AnnotateConfig())


def test_perceptual_hash_ignores_size_and_encoding():
    image = picture(3, 200, 200)
    small = picture(3, 90, 90)
    assert (perceptual_hash(image) ^ perceptual_hash(small)).bit_count() <= 4
    assert (perceptual_hash(image) ^ perceptual_hash(picture(4))).bit_count() > 10
    cells = np.frombuffer(thumbnail(image), np.uint8).reshape(8, 8, 3)
    assert abs(cells.mean() - image.mean()) < 2


@pytest.mark.parametrize(
    ("caption", "words", "share"),
    [("", 0, 0.0), ("two  words", 2, 1.0), ("两只 cats", 3, 1.0), ("IMG_1234", 1, 3 / 8), ("नमस्ते", 1, 1.0)],
)
def test_caption_statistics(caption, words, share):
    assert count_words(caption) == words
    assert alpha_share(caption) == pytest.approx(share)


def test_languages_are_checked():
    with pytest.raises(ValidationError, match="ISO 639-1"):
        AnnotateConfig(languages=("english",))
    with pytest.raises(ValidationError, match=r"not known to the classifier.*xx"):
        AnnotateConfig(languages=("en", "xx"))
