"""Redacted files: nothing of the sample is left, nothing else has changed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprep.io.failure_reasons import FORGOTTEN
from dataprep.io.parquet import KIND_KEY, KINDS, VERSION_KEY, read_table, write_table
from dataprep.io.redact import Forgotten, ForgottenList, hash_url, redact_parquet, redact_tar
from dataprep.listing.config import ListingConfig
from dataprep.listing.writer import write_listing

KEYS = [f"00002{row:04d}" for row in range(6)]
SECRET = "zebra-crossing"


def rows(**columns: Any) -> pa.Table:
    return pa.table({"key": KEYS, **columns})


def texts(plain: str = "plain") -> list[str]:
    return [f"{SECRET} {row}" if row == 3 else f"{plain} {row}" for row in range(6)]


TABLES = {
    "listing": lambda: pa.table({"url": texts("http://a/"), "caption": texts(), "tags": [[t] for t in texts()]}),
    "download": lambda: rows(
        url=texts("http://a/"),
        caption=texts(),
        status=["success"] * 6,
        error_message=pa.nulls(6, pa.string()),
        reason=pa.nulls(6, pa.string()),
        width=pa.array(range(6), pa.int32()),
        sha256=texts("ab"),
        LICENSE=texts(),
    ),
    "annotations": lambda: rows(ok=[True] * 6, caption=texts(), thumbnail=pa.array([b"xy"] * 6, pa.binary(2))),
    "scores": lambda: rows(
        clip_similarity=pa.array([0.5] * 6, pa.float32()), clip_embedding=pa.array([b"abcd"] * 6, pa.binary(4))
    ),
    "columns": lambda: rows(sharpness=pa.array([0.5] * 6, pa.float32()), text=texts()),
    "selection": lambda: rows(keep=[True] * 6, reason=pa.nulls(6, pa.string()), split=["train"] * 6),
    "pack": lambda: rows(caption=texts(), pixels_16=[text.encode() for text in texts()]),
    "embeddings": lambda: rows(caption=texts(), length=[1] * 6, embedding=[text.encode() for text in texts()]),
}


def test_every_redacted_kind_has_a_test_table() -> None:
    assert sorted(TABLES) == sorted(name for name, kind in KINDS.items() if kind.redaction != "none")


@pytest.mark.parametrize("kind", TABLES)
def test_nothing_of_the_sample_is_left_and_nothing_else_changes(kind: str, tmp_path: Path) -> None:
    source, target = tmp_path / "a.parquet", tmp_path / "b.parquet"
    before = TABLES[kind]()
    write_table(before, source, kind, row_group_size=2, use_dictionary=kind != "pack")
    assert redact_parquet(source, target, 2, [KEYS[3], "000010001"]) == 1
    after = read_table(target, kind)
    assert after.schema.remove_metadata() == before.schema.remove_metadata()
    assert SECRET.encode() not in target.read_bytes()
    assert SECRET not in str(after.to_pylist())
    others = [row for row in before.to_pylist() if row.get("key", row.get("url")) not in (KEYS[3], f"{SECRET} 3")]
    kept = after.to_pylist()
    blank = KINDS[kind].blank
    if blank is not None:
        gone = kept.pop(3)
        told = {name: value for name, value in blank.items() if name in gone}
        assert gone == dict.fromkeys(gone) | ({"key": KEYS[3]} if "key" in gone else {}) | told
    assert kept == others
    # A file with nothing of it is left as it is; what is done once is done.
    assert redact_parquet(target, tmp_path / "c.parquet", 2, [KEYS[3]]) == 0
    assert redact_parquet(source, tmp_path / "c.parquet", 2, ["000020009" if kind != "listing" else "000030001"]) == 0
    assert not (tmp_path / "c.parquet").exists()


def test_the_layout_stays_and_aligned_files_stay_aligned_group_by_group(tmp_path: Path) -> None:
    """Row groups of 2, 1 and 3 rows, one of which is emptied; embeddings with two captions per image."""
    pack, embed = tmp_path / "pack.parquet", tmp_path / "embed.parquet"
    options = {"use_dictionary": ["caption"], "write_statistics": ["key"], "write_page_index": True}
    options |= {"compression": {"key": "zstd", "caption": "zstd", "pixels_16": "none"}}
    table = TABLES["pack"]()
    write_groups(table, pack, "pack", [2, 1, 3], **options)
    twice = pa.concat_tables([TABLES["embeddings"]()] * 2).sort_by("key")
    write_groups(twice, embed, "embeddings", [4, 2, 6])
    for source, target, rows in ((pack, "p", 3), (embed, "e", 6)):
        gone = [KEYS[0], KEYS[2], KEYS[3]]
        assert redact_parquet(source, tmp_path / target, 2, gone) == rows
    before, after, beside = (pq.read_metadata(tmp_path / name) for name in ("pack.parquet", "p", "e"))
    assert [after.row_group(index).num_rows for index in range(after.num_row_groups)] == [1, 2]
    assert [beside.row_group(index).num_rows for index in range(beside.num_row_groups)] == [2, 4]
    assert pq.read_table(tmp_path / "e")["key"].to_pylist()[::2] == pq.read_table(tmp_path / "p")["key"].to_pylist()
    for index in range(3):
        one, other = before.row_group(0).column(index), after.row_group(0).column(index)
        for name in ("compression", "encodings", "has_offset_index", "is_stats_set"):
            assert getattr(one, name) == getattr(other, name), (one.path_in_schema, name)


def write_groups(table: pa.Table, path: Path, kind: str, groups: list[int], **options: Any) -> None:
    metadata = {KIND_KEY: kind.encode(), VERSION_KEY: b"1"}
    table = table.replace_schema_metadata(metadata)
    with pq.ParquetWriter(path, table.schema, **options) as writer:
        for start, rows in zip(np.cumsum([0, *groups]).tolist(), groups, strict=False):
            writer.write_table(table.slice(start, rows))


def test_a_redacted_listing_is_what_a_new_listing_would_be(tmp_path: Path) -> None:
    """So that shards made from it are reused without another request."""
    lines = ["url,caption,license", *(f"http://a/{row}.jpg,picture {row},CC{row}" for row in range(9))]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    config = ListingConfig(source="table", path=str(tmp_path / "list.csv"), rows_per_shard=4)
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    expected = {"records": 9, "rows": 9, "shards": 3, "usable": 9}
    assert write_listing(config, 0, tmp_path / "before") == expected
    counters = write_listing(config, 0, tmp_path / "after", frozenset({hash_url("http://a/5.jpg")}))
    assert counters == {**expected, "forgotten": 1}
    redact_parquet(tmp_path / "before" / "00001.parquet", tmp_path / "redacted", 1, ["000010001"])
    assert (tmp_path / "redacted").read_bytes() == (tmp_path / "after" / "00001.parquet").read_bytes()
    assert read_table(tmp_path / "redacted", "listing").to_pylist()[1] == {"url": "", "caption": "", "license": None}
    for name in ("00000.parquet", "00002.parquet"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": KEYS}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"add it to dataprep/io/parquet\.py"):
        redact_parquet(tmp_path / "a.parquet", tmp_path / "b.parquet", 2, KEYS)


def test_a_tar_loses_its_files_and_the_others_keep_their_bytes(tmp_path: Path) -> None:
    source, target, expected = tmp_path / "a.tar", tmp_path / "b.tar", tmp_path / "c.tar"

    def write(path: Path, keys: list[str]) -> None:
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for key in keys:
                for extension in ("jpg", "txt", "json"):
                    data = f"{key} {extension}".encode() * 99
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))

    write(source, KEYS)
    write(expected, KEYS[:3] + KEYS[4:])
    assert redact_tar(source, target, [KEYS[3], "000010003"]) == 1
    assert target.read_bytes() == expected.read_bytes()
    assert redact_tar(target, tmp_path / "d.tar", [KEYS[3]]) == 0
    assert not (tmp_path / "d.tar").exists()


def test_the_record_of_forgotten_samples_holds_hashes_only(tmp_path: Path) -> None:
    path = str(tmp_path / "forgotten.json")
    assert Forgotten.read(path) == Forgotten()
    trained = [{"stage": "train.base", "fingerprint": "f"}]
    told = Forgotten(
        frozenset({hash_url("http://a/1"), hash_url("http://a/0")}),
        frozenset({"aa"}),
        {"download/f": ["b", "a"]},
        trained,
    )
    told.write(path)
    assert "http://a" not in Path(path).read_text()
    assert json.loads(Path(path).read_text())["urls"] == sorted(told.urls)
    again = Forgotten.read(path)
    assert (again.urls, again.images, again.rows, again.trained) == (
        told.urls,
        told.images,
        {"download/f": ["a", "b"]},
        trained,
    )
    assert FORGOTTEN not in told.images


def test_the_path_of_the_record_is_not_fingerprinted() -> None:
    assert ForgottenList(path="/a/forgotten.json").model_dump() == ForgottenList(path="/b").model_dump() == {}
