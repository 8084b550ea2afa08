"""Row groups on demand: object storage, damage, several captions, small originals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dataprep.io.errors import UserError
from dataprep.io.parquet import write_table
from tests.helpers.packs import make_caption, make_embedding, make_image, write_embeddings, write_pack
from train.loader.config import LoaderConfig
from train.loader.loader import Batch, Loader
from train.loader.reader import CorruptDataError

COLUMN = ("pixels_64",)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], list[str]]]:
    """Shards in memory://, and a row-group cache in a folder of the test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fs = fsspec.filesystem("memory")
    paths: tuple[list[str], list[str]] = ([], [])
    for number, (start, stop) in enumerate([(0, 40), (40, 100)]):
        local_paths = (
            write_pack(tmp_path / f"0{number}", start, stop, rows=8),
            write_embeddings(tmp_path / f"1{number}", start, stop, rows=8),
        )
        for kind, local in enumerate(local_paths):
            url = f"memory://{tmp_path.name}/{kind}{number}.parquet"
            fs.pipe_file(url, Path(local).read_bytes())
            paths[kind].append(url)
    yield paths
    fs.rm(f"memory://{tmp_path.name}", recursive=True)


def check_batch(batch: Batch) -> None:
    for row, key in enumerate(batch["key"]):
        index = int(key)
        assert batch["caption"][row] == make_caption(index)
        assert np.array_equal(batch["pixels_64"][row], make_image(index, 64))
        length = int(batch["text_mask_BL"][row].sum())
        np.testing.assert_allclose(batch["text_BLD"][row, :length], make_embedding(index), atol=0.02)


def test_object_storage_gives_the_same_batches(
    remote: tuple[list[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = [[str(tmp_path / f"{kind}{number}") for number in range(2)] for kind in range(2)]
    here, there = (Loader(pack, embed, COLUMN, "train", 3, 10) for pack, embed in (near, remote))
    for step in range(12):
        one, other = here.batch(step), there.batch(step)
        check_batch(other)
        assert one["key"] == other["key"] and torch.equal(one["text_BLD"], other["text_BLD"])
    cached = list(tmp_path.glob("imagen-ray-*/row-groups/*.arrow"))
    assert len(cached) == 2 * len(there.reader)
    again = Loader(*remote, COLUMN, "train", 3, 10)
    monkeypatch.delattr(pq.ParquetFile, "read_row_group")  # cached row groups are not fetched again
    check_batch(again.batch(0))
    with pytest.raises(AttributeError):
        Loader(*remote, COLUMN, "train", 3, 10, config=LoaderConfig(cache_mb=0)).batch(0)


def test_a_window_smaller_than_two_batches_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack = write_pack(tmp_path / "p", 0, 400, sizes=(64,), raw_up_to=64, rows=8)
    config = LoaderConfig(window_mb=1)
    Loader([pack], None, COLUMN, "train", 0, 35, config=config)
    Loader([pack], None, COLUMN, "validation", 0, 40, config=config)
    assert not caplog.records
    Loader([pack], None, COLUMN, "train", 0, 70, config=config)
    assert "window_mb=1 holds about 70 selected rows, fewer than two batches of batch_size=70" in caplog.text
    assert "set data.window_mb to 2 or more" in caplog.text


def test_an_unreadable_row_is_replaced_from_nearby(tmp_path: Path) -> None:
    """A rank holds only its share of the window: replacements come from there."""
    pack = write_pack(tmp_path / "p", 0, 400, sizes=(64,), raw_up_to=64, rows=8)
    flip_bytes(pack, 20, "pixels_64")
    loader = Loader([pack], None, COLUMN, "train", 0, 40, config=LoaderConfig(window_mb=1000, on_corrupt="skip"))
    for step in range(9):
        keys = loader.batch(step)["key"]
        rows = loader.order.row_ids(loader.positions(step))
        for row, key in zip(rows, keys, strict=True):
            if loader.order.group_of(row) == 20:
                assert int(key) // 8 in (19, 21)
    assert len(loader.corrupt) == 1


def test_first_returns_the_first_samples(tmp_path: Path) -> None:
    pack, embed = write_pack(tmp_path / "p", 0, 40, rows=8), write_embeddings(tmp_path / "e", 0, 40, rows=8)
    loader = Loader([pack], [embed], COLUMN, "train", 0, 20)
    few, whole = loader.first(8), loader.batch(0)
    assert few["key"] == whole["key"][:8] and torch.equal(few["index"], whole["index"][:8])
    assert len(loader.first(99)["key"]) == 20


def flip_bytes(path: str, group: int, column: str) -> None:
    """Inverts four bytes in the middle of a column of a row group."""
    metadata = pq.read_metadata(path).row_group(group)
    chunk = next(c for c in map(metadata.column, range(metadata.num_columns)) if c.path_in_schema == column)
    at = chunk.data_page_offset + chunk.total_compressed_size // 2
    data = bytearray(Path(path).read_bytes())
    data[at : at + 4] = bytes(255 - byte for byte in data[at : at + 4])
    Path(path).write_bytes(data)


@pytest.mark.parametrize("kind", ["pack", "embeddings"])
def test_a_damaged_row_group_is_refused_or_skipped(tmp_path: Path, kind: str) -> None:
    pack = write_pack(tmp_path / "p", 0, 64, sizes=(64,), raw_up_to=64, rows=8)
    embed = write_embeddings(tmp_path / "e", 0, 64, rows=8)
    whole = Loader([pack], [embed], COLUMN, None, 0, 64).batch(0)
    flip_bytes(*((pack, 3, "pixels_64") if kind == "pack" else (embed, 3, "embedding")))
    with pytest.raises(CorruptDataError, match=r"p row group 3: cannot be read.*on_corrupt=skip"):
        Loader([pack], [embed], COLUMN, None, 0, 64).batch(0)
    skipping = Loader([pack], [embed], COLUMN, None, 0, 64, config=LoaderConfig(on_corrupt="skip"))
    batch = skipping.batch(0)
    check_batch(batch)
    assert [name.rpartition("/")[2] for name in skipping.corrupt] == ["p row group 3"]
    assert "row group 3" in next(iter(skipping.corrupt.values()))
    lost = {f"{index:05d}" for index in range(24, 32)}
    assert lost.isdisjoint(batch["key"]) and len(batch["key"]) == 64
    # All other samples keep their place, and a batch does not depend on earlier calls.
    assert all(new == old for new, old in zip(batch["key"], whole["key"], strict=True) if old not in lost)
    fresh = Loader([pack], [embed], COLUMN, None, 0, 64, config=LoaderConfig(on_corrupt="skip"))
    fresh.batch(2)
    assert fresh.batch(0)["key"] == batch["key"]


def test_without_verification_damaged_raw_pixels_load(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "p", 0, 16, sizes=(64,), raw_up_to=64, rows=8)
    flip_bytes(pack, 1, "pixels_64")
    Loader([pack], None, COLUMN, None, 0, 16, config=LoaderConfig(verify=False)).batch(0)
    with pytest.raises(CorruptDataError, match="CRC"):
        Loader([pack], None, COLUMN, None, 0, 16).batch(0)


def test_an_invalid_image_is_refused_or_skipped(tmp_path: Path) -> None:
    path = write_pack(tmp_path / "p", 0, 16)
    table = pq.read_table(path)
    values = table["pixels_64"].to_pylist()
    values[5] = b"no png"
    field = table.schema.field("pixels_64")
    table = table.set_column(table.schema.names.index("pixels_64"), field, pa.array(values, pa.binary()))
    write_table(table, tmp_path / "q", "pack")
    with pytest.raises(CorruptDataError, match=r"row group 0, key 00005, pixels_64: .*64x64 png"):
        Loader([str(tmp_path / "q")], None, COLUMN, None, 0, 16).batch(0)
    loader = Loader([str(tmp_path / "q")], None, COLUMN, None, 0, 16, config=LoaderConfig(on_corrupt="skip"))
    assert "00005" not in loader.batch(0)["key"] and len(loader.corrupt) == 1


def test_without_a_replacement_loading_fails(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "p", 0, 8, sizes=(64,), raw_up_to=64)
    flip_bytes(pack, 0, "pixels_64")
    with pytest.raises(CorruptDataError):
        Loader([pack], None, COLUMN, None, 0, 8, config=LoaderConfig(on_corrupt="skip")).batch(0)


def test_one_of_several_captions_is_chosen_per_epoch(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "p", 0, 40, rows=8, captions=3)
    embed = write_embeddings(tmp_path / "e", 0, 40, rows=8, captions=3)
    loader = Loader([pack], [embed], COLUMN, None, 0, 40)
    chosen: dict[str, list[int]] = {}
    for epoch in range(30):
        batch = loader.batch(epoch)
        for row, key in enumerate(batch["key"]):
            base, number = batch["caption"][row].rsplit(" #", 1)
            assert base == make_caption(int(key))
            length = int(batch["text_mask_BL"][row].sum())
            np.testing.assert_allclose(
                batch["text_BLD"][row, :length], make_embedding(int(key) * 3 + int(number)), atol=0.02
            )
            chosen.setdefault(key, []).append(int(number))
    counts = np.bincount([number for numbers in chosen.values() for number in numbers])
    assert len(counts) == 3 and counts.min() > 330  # 400 expected, sd 16
    assert all(len(set(numbers)) > 1 for numbers in chosen.values())
    assert loader.batch(4)["caption"] == Loader([pack], [embed], COLUMN, None, 0, 40).batch(4)["caption"]


def test_mismatched_shards_are_refused(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "p", 0, 16, rows=8)
    cases = [
        ([write_embeddings(tmp_path / "a", 0, 15, rows=8)], "not the same rows"),
        ([write_embeddings(tmp_path / "b", 0, 16, rows=4)], "not the same rows"),
        ([write_embeddings(tmp_path / "c", 0, 16, rows=8)] * 2, "1 pack and 2 embedding shards"),
        ([pack], "expected a file of kind 'embeddings'"),
    ]
    for embed, message in cases:
        with pytest.raises(UserError, match=message):
            Loader([pack], embed, COLUMN, "train", 0, 8)
    other = write_embeddings(tmp_path / "d", 16, 32, rows=8)
    with pytest.raises(UserError, match="same rows in the same order"):
        Loader([pack], [other], COLUMN, "train", 0, 8).batch(0)
    (tmp_path / "torn").write_bytes(Path(pack).read_bytes()[:-20])
    with pytest.raises(UserError, match=r"torn.*not a readable Parquet"):
        Loader([str(tmp_path / "torn")], None, COLUMN, "train", 0, 8)


def test_small_originals_are_excluded(tmp_path: Path) -> None:
    pack, embed = write_pack(tmp_path / "p", 0, 40, rows=8), write_embeddings(tmp_path / "e", 0, 40, rows=8)
    with pytest.raises(UserError, match="no column original_side, which min_original=64 needs; run pack again"):
        Loader([pack], [embed], COLUMN, "train", 0, 4, min_original=64)
    table = pq.read_table(pack)  # the second row group has small ones alone
    sides = [60 + index % 8 if index // 8 != 1 else 20 for index in range(40)]
    table = table.append_column("original_side", pa.array(sides, pa.int32()))
    write_table(table, pack, "pack", row_groups=[8] * 5, compression="none", write_page_checksum=True)
    loader = Loader([pack], [embed], COLUMN, "train", 0, 4, min_original=64)
    seen = {key for step in range(len(loader) // 4) for key in loader.batch(step)["key"]}
    assert seen == {f"{index:05d}" for index in range(40) if sides[index] >= 64 and index % 8 != 7}
    with pytest.raises(UserError, match="no row of split 'train' from an original of min_original=99 pixels"):
        Loader([pack], [embed], COLUMN, "train", 0, 4, min_original=99)
