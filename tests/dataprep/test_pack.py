from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from dataprep.download.config import DownloadConfig, FetchConfig
from dataprep.download.shard import download_shard
from dataprep.images.decode import read_shard_rgb
from dataprep.images.pixel_encodings import PIXEL_ENCODINGS, PixelEncoding
from dataprep.images.resize import resize_square
from dataprep.io.errors import UserError
from dataprep.io.pack_format import ENCODING_KEY, caption_names
from dataprep.io.parquet import read_table, write_table
from dataprep.io.source_column import SOURCE_COLUMN
from dataprep.pack import pack_shard
from dataprep.pack_config import PackConfig
from tests.helpers.images import encoded, picture
from tests.helpers.web import Web
from train.loader.pack_files import read_pixel_encoding
from train.loader.row_group import decode_pixels


@pytest.fixture
def shard(web: Web, tmp_path: Path) -> tuple[Path, Path]:
    urls = [web.put(f"/{index}.png", encoded(picture(index, 120, 90))) for index in range(4)] + [web.url("/gone")]
    captions = [f"caption {index}" for index in range(5)]
    write_table(pa.table({"url": urls, "caption": captions}), tmp_path / "l.parquet", "listing")
    config = DownloadConfig(fetch=FetchConfig(retries=0), image_size=90, encode_format="png", encode_quality=1)
    download_shard(tmp_path / "l.parquet", 0, tmp_path, config, web.hosts)
    return tmp_path / "00000.tar", tmp_path / "00000.parquet"


def selection(path: Path, keys: list[str], keep: list[bool], splits: Any) -> Path:
    columns = {"key": keys, "keep": keep, "reason": [None if k else "x: y" for k in keep], "split": splits}
    write_table(pa.table(columns), path, "selection")
    return path


def pixels(data: bytes, encoding: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))) if encoding != "raw" else np.frombuffer(data, np.uint8)


def test_selected_rows_in_every_resolution(shard: tuple[Path, Path], tmp_path: Path) -> None:
    keys = read_table(shard[1], "download")["key"].to_pylist()
    splits = ["train", None, "validation", "train", None]
    chosen = selection(tmp_path / "s.parquet", keys, [bool(split) for split in splits], splits)
    config = PackConfig(resolutions=(16, 64, 80), row_group_rows=2)
    assert pack_shard(*shard, chosen, tmp_path / "p.parquet", config) == {"rows": 3, "train": 2, "validation": 1}
    table = read_table(tmp_path / "p.parquet", "pack")
    assert table["key"].to_pylist() == [keys[0], keys[3], keys[2]]  # validation comes last
    assert table["caption"].to_pylist() == ["caption 0", "caption 3", "caption 2"]
    assert table["captions"].to_pylist() == [["caption 0"], ["caption 3"], ["caption 2"]]
    assert table["split"].to_pylist() == ["train", "train", "validation"]
    fetched = {row["key"]: row for row in read_table(shard[1], "download").to_pylist()}
    sides = [min(fetched[key]["original_width"], fetched[key]["original_height"]) for key in table["key"].to_pylist()]
    assert table["original_side"].to_pylist() == sides
    images = dict(read_shard_rgb(shard[0]))
    for size, encoding in ((16, "raw"), (64, "raw"), (80, "png")):
        name = f"pixels_{size}"
        assert table.schema.field(name).metadata[ENCODING_KEY] == encoding.encode()
        for key, data in zip(table["key"].to_pylist(), table[name].to_pylist(), strict=True):
            expected = resize_square(images[key], size)
            assert np.array_equal(pixels(data, encoding).reshape(size, size, 3), expected)
    assert pq.ParquetFile(tmp_path / "p.parquet").num_row_groups == 2  # of one split each


def test_without_a_selection_every_image_is_packed(shard: tuple[Path, Path], tmp_path: Path) -> None:
    assert pack_shard(*shard, None, tmp_path / "p.parquet", PackConfig(resolutions=(8,)))["rows"] == 4
    assert set(read_table(tmp_path / "p.parquet", "pack")["split"].to_pylist()) == {"train"}


def test_an_empty_selection_gives_an_empty_shard(shard: tuple[Path, Path], tmp_path: Path) -> None:
    keys = read_table(shard[1], "download")["key"].to_pylist()
    chosen = selection(tmp_path / "s.parquet", keys, [False] * 5, pa.nulls(5, pa.string()))
    assert pack_shard(*shard, chosen, tmp_path / "p.parquet", PackConfig()) == {"rows": 0, "train": 0, "validation": 0}
    assert read_table(tmp_path / "p.parquet", "pack").num_rows == 0


def test_several_captions(web: Web, tmp_path: Path) -> None:
    urls = [web.put(f"/{index}.png", encoded(picture(index, 40, 40))) for index in range(2)]
    columns = {"url": urls, "caption": ["one", "two"], "alt": ["1", None], "title": ["i", "ii"]}
    write_table(pa.table(columns), tmp_path / "l.parquet", "listing")
    download_shard(tmp_path / "l.parquet", 0, tmp_path, DownloadConfig(image_size=40), web.hosts)
    shard = tmp_path / "00000.tar", tmp_path / "00000.parquet"
    pack_shard(
        *shard,
        None,
        tmp_path / "p.parquet",
        PackConfig(resolutions=(8,), captions={"caption": 1, "alt": 1, "title": 2}),
    )
    table = read_table(tmp_path / "p.parquet", "pack")
    assert table["captions"].to_pylist() == [["one", "1", "i"], ["two", "two", "ii"]]
    assert table["caption"].to_pylist() == ["one", "two"]
    with pytest.raises(UserError, match=r"pack.captions=tags: .*alt, title"):
        pack_shard(
            *shard, None, tmp_path / "p.parquet", PackConfig(resolutions=(8,), captions={"caption": 1, "tags": 1})
        )


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_compression_applies_to_raw_pixels_only(shard: tuple[Path, Path], tmp_path: Path, compression: Any) -> None:
    config = PackConfig(resolutions=(16, 80), compression=compression)
    pack_shard(*shard, None, tmp_path / "p.parquet", config)
    group = pq.read_metadata(tmp_path / "p.parquet").row_group(0)
    found = {group.column(at).path_in_schema: group.column(at) for at in range(group.num_columns)}
    assert found["pixels_16"].compression == {"none": "UNCOMPRESSED"}.get(compression, compression.upper())
    assert found["pixels_80"].compression == "UNCOMPRESSED"
    assert "RLE_DICTIONARY" not in found["pixels_16"].encodings and not found["pixels_16"].is_stats_set


def test_jpeg_and_rerun(shard: tuple[Path, Path], tmp_path: Path) -> None:
    config = PackConfig(resolutions=(80,), encoding="jpeg", raw_up_to=0)
    for name in ("a", "b"):
        pack_shard(*shard, None, tmp_path / name, config)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    table = read_table(tmp_path / "a", "pack")
    assert table.schema.field("pixels_80").metadata[ENCODING_KEY] == b"jpeg"
    assert pixels(table["pixels_80"][0].as_py(), "jpeg").shape == (80, 80, 3)


def test_a_new_encoding_is_a_choice_of_the_config_and_is_read_back(
    shard: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValidationError, match="'bmp' is unknown; take one of png, jpeg"):
        PackConfig(encoding="bmp")
    monkeypatch.setitem(PIXEL_ENCODINGS, "bmp", PixelEncoding(lambda config, shape: [], lossless=True))
    columns = []
    for encoding in ("png", "bmp"):
        path = tmp_path / encoding
        pack_shard(*shard, None, path, PackConfig(resolutions=(80,), encoding=encoding, raw_up_to=0))
        stored = read_pixel_encoding(str(path), pq.read_schema(path), "pixels_80")
        assert stored.encoding == encoding
        columns.append(
            [decode_pixels(data, encoding, (80, 80)) for data in pq.read_table(path)["pixels_80"].to_pylist()]
        )
    np.testing.assert_array_equal(columns[0], columns[1])


def test_a_selection_of_another_shard_is_refused(shard: tuple[Path, Path], tmp_path: Path) -> None:
    chosen = selection(tmp_path / "s.parquet", ["x"], [True], ["train"])
    with pytest.raises(ValueError, match="select again"):
        pack_shard(*shard, chosen, tmp_path / "p.parquet", PackConfig())
    keys = read_table(shard[1], "download")["key"].to_pylist()
    chosen = selection(tmp_path / "s.parquet", keys, [True] * 5, ["train"] * 5)  # the last has no image
    with pytest.raises(ValueError, match="4 of 5 selected images"):
        pack_shard(*shard, chosen, tmp_path / "p.parquet", PackConfig())


def test_faces_are_blurred_in_the_pack_alone(shard: tuple[Path, Path], tmp_path: Path) -> None:
    keys = read_table(shard[1], "download")["key"].to_pylist()
    boxes = [[], [[0.25, 0.25, 0.75, 0.75]], [], [], None]
    write_table(pa.table({"key": keys, "face_boxes": boxes}), tmp_path / "a.parquet", "annotations")
    plain, blurred = PackConfig(resolutions=(64,)), PackConfig(resolutions=(64,), blur_faces=0.0)
    pack_shard(*shard, None, tmp_path / "plain.parquet", plain)
    pack_shard(*shard, None, tmp_path / "blurred.parquet", blurred, annotations_path=tmp_path / "a.parquet")
    before, after = (
        np.stack([np.frombuffer(data, np.uint8) for data in read_table(path, "pack")["pixels_64"].to_pylist()])
        for path in (tmp_path / "plain.parquet", tmp_path / "blurred.parquet")
    )
    assert (before == after).all(axis=1).tolist() == [True, False, True, True]
    changed = (before[1] != after[1]).reshape(64, 64, 3).any(axis=2)
    assert changed[24:40, 24:40].mean() > 0.5 and not changed[:10].any() and not changed[:, :5].any()
    write_table(pa.table({"key": keys[::-1], "face_boxes": boxes}), tmp_path / "other.parquet", "annotations")
    with pytest.raises(ValueError, match="annotate again"):
        pack_shard(*shard, None, tmp_path / "p.parquet", blurred, annotations_path=tmp_path / "other.parquet")


def write_sources(folder: Path, web: Web, sources: list[str | None]) -> tuple[Path, Path]:
    urls = [web.put(f"/{index}.png", encoded(picture(index, 40, 40))) for index in range(len(sources))]
    columns = {"url": urls, "caption": ["one", "two"], "alt": ["1", None], SOURCE_COLUMN: sources}
    write_table(pa.table(columns), folder / "l.parquet", "listing")
    download_shard(folder / "l.parquet", 0, folder, DownloadConfig(image_size=40), web.hosts)
    return folder / "00000.tar", folder / "00000.parquet"


def test_a_source_packs_its_own_captions(web: Web, tmp_path: Path) -> None:
    shard = write_sources(tmp_path, web, ["web", "web"])
    config, out = PackConfig(resolutions=(8,)), tmp_path / "p.parquet"
    pack_shard(*shard, None, out, config, source_captions={"web": ("alt",), "photos": ("caption",)})
    table = read_table(out, "pack")
    assert table["captions"].to_pylist() == [["1"], ["two"]] and table["caption"].to_pylist() == ["one", "two"]
    assert caption_names(table.schema.field("captions")) == ["alt"]
    assert table[SOURCE_COLUMN].to_pylist() == ["web", "web"]
    assert pq.read_metadata(out).row_group(0).column(4).statistics.has_min_max  # what the index of shards reads
    pack_shard(*shard, None, out, config, source_captions={"photos": ("alt",)})
    assert caption_names(read_table(out, "pack").schema.field("captions")) == ["caption"]
    with pytest.raises(UserError, match=r"listing.sources.web.captions=tags: the listing has no such column"):
        pack_shard(*shard, None, out, config, source_captions={"web": ("tags",)})


def test_rows_of_two_sources_are_in_two_shards(web: Web, tmp_path: Path) -> None:
    shard = write_sources(tmp_path, web, ["web", "photos"])
    with pytest.raises(ValueError, match="rows of the sources web, photos in one shard"):
        pack_shard(*shard, None, tmp_path / "p.parquet", PackConfig(resolutions=(8,)))


def test_written_captions_are_packed_beside_the_images_own(web: Web, tmp_path: Path) -> None:
    shard = write_sources(tmp_path, web, ["web", "web"])
    keys = read_table(shard[1], "download")["key"].to_pylist()
    written = {"key": keys, "long": ["a long one", None], "alt": ["not this", "one"]}
    write_table(pa.table(written), tmp_path / "c.parquet", "columns")
    config = PackConfig(resolutions=(8,), captions={"caption": 1, "long": 2, "alt": 1})
    pack_shard(*shard, None, tmp_path / "p.parquet", config, captions_path=tmp_path / "c.parquet")
    table = read_table(tmp_path / "p.parquet", "pack")
    assert table["captions"].to_pylist() == [["one", "a long one", "1"], ["two", "two", "two"]]  # the source's own alt
    write_table(pa.table(written | {"key": keys[::-1]}), tmp_path / "c.parquet", "columns")
    with pytest.raises(ValueError, match="not the rows of its download shard; write the captions again"):
        pack_shard(*shard, None, tmp_path / "p.parquet", config, captions_path=tmp_path / "c.parquet")


def features(path: Path, keys: list[str], values: list[bytes | None]) -> Path:
    columns = {"key": keys, "clip_similarity": [0.5] * len(keys), "clip_embedding": pa.array(values, pa.binary(4))}
    write_table(pa.table(columns), path, "scores")
    return path


def test_features_are_packed_with_their_images(shard: tuple[Path, Path], tmp_path: Path) -> None:
    keys = read_table(shard[1], "download")["key"].to_pylist()
    splits = ["train", None, "validation", "train", None]
    chosen = selection(tmp_path / "s.parquet", keys, [bool(split) for split in splits], splits)
    values = [bytes([row] * 4) for row in range(4)] + [None]
    scores = features(tmp_path / "f.parquet", keys, values)
    config = PackConfig(resolutions=(16,), features=("clip_embedding",))
    pack_shard(*shard, chosen, tmp_path / "p.parquet", config, scores_path=scores)
    table = read_table(tmp_path / "p.parquet", "pack")
    assert table["key"].to_pylist() == [keys[0], keys[3], keys[2]]  # validation comes last
    assert table["clip_embedding"].to_pylist() == [values[0], values[3], values[2]]
    metadata = pq.read_metadata(tmp_path / "p.parquet").row_group(0)
    columns = {metadata.column(at).path_in_schema: metadata.column(at) for at in range(metadata.num_columns)}
    assert columns["clip_embedding"].compression == "UNCOMPRESSED" and not columns["clip_embedding"].has_dictionary_page
    holes = features(tmp_path / "g.parquet", keys, [None, *values[1:]])
    with pytest.raises(ValueError, match="1 kept rows have no clip_embedding; score the shard again"):
        pack_shard(*shard, chosen, tmp_path / "q.parquet", config, scores_path=holes)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"features": ("clip_embedding", "clip_embedding")}, "clip_embedding occurs twice"),
        ({"features": ("colour",)}, "'colour' is unknown; take one of clip_embedding, clip_text_embedding"),
        ({"features": ("clip_text_embedding",), "captions": ["long"]}, "is that of a row's own caption alone"),
    ],
)
def test_features_that_there_are_not_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PackConfig(**keys)
