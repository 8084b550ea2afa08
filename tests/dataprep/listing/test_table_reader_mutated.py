"""Seeded damage: captions of any characters, lists with flipped, cut or spliced bytes. No crash, always a reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from dataprep.annotate import annotate_captions
from dataprep.annotate_config import AnnotateConfig, load_language_identifier
from dataprep.filters.config import SelectConfig
from dataprep.io.errors import UserError
from dataprep.io.keys import shard_name
from dataprep.io.parquet import read_table, write_table
from dataprep.listing.config import ListingConfig
from dataprep.listing.sources import list_rows
from dataprep.listing.writer import write_listing
from tests.helpers.selection import choose, row

CAPTIONS, FILES = 4000, 400
# What parsers and statistics stumble over: controls, separators, marks, direction changes, noncharacters, far planes.
ODD = "\x00\x1b\x7f\x85\u00ad\u0300\u0301\u202e\u2028\u200b\ufeff\ufffd\ufffe\U0001f600\U000e0001\U0010ffff"
ODD += "\t\r\n ,\"'\\{}"


def mutated_caption(rng: np.random.Generator) -> str:
    text = list("A red cat 坐在 the mat, год 2024 नमस्ते".ljust(rng.integers(1, 60)))
    for _ in range(rng.integers(0, 12)):
        place = int(rng.integers(0, len(text) + 1))
        kind = rng.integers(0, 5)
        if kind == 0 and text:
            del text[place % len(text) :][: int(rng.integers(1, 9))]
        elif kind == 1:
            text[place:place] = ODD[rng.integers(0, len(ODD))] * int(rng.integers(1, 30))
        elif kind == 2:
            text[place:place] = [chr(int(rng.integers(0, 0xD800)))]
        elif kind == 3:
            text[place:place] = rng.bytes(6).decode("latin-1")
        else:
            text = text * int(rng.integers(0, 4))
        text = list(text)
    return "".join(text)


def test_mutated_captions_get_a_verdict(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    captions = [mutated_caption(rng) for _ in range(CAPTIONS)]
    lines = "".join(json.dumps({"url": f"http://a/{i}", "caption": text}) + "\n" for i, text in enumerate(captions))
    (tmp_path / "list.jsonl").write_text(lines)
    config = ListingConfig(source="table", path=str(tmp_path / "list.jsonl"), rows_per_shard=1000)
    assert write_listing(config, 0, tmp_path)["rows"] == CAPTIONS
    read = [read_table(tmp_path / shard_name(index, "parquet"), "listing") for index in range(4)]
    assert pa.concat_tables(read)["caption"].to_pylist() == captions
    measured = annotate_captions(captions, load_language_identifier(AnnotateConfig().languages))
    rows = [row(index) | columns for index, columns in enumerate(measured)]
    rules = SelectConfig(languages=("en", "zh"), words="spaces", max_caption_repeats=1, near_duplicate_bits=None)
    written, selection = choose([rows[:1000], rows[1000:]], rules)
    verdicts = [entry for table in written for entry in table.to_pylist()]
    assert len(verdicts) == CAPTIONS and 0 < selection.kept < CAPTIONS
    assert all(entry["keep"] == (entry["reason"] is None) for entry in verdicts)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        place, length = int(rng.integers(0, len(out))), int(rng.integers(1, 40))
        kind = rng.integers(0, 4)
        if kind == 0:
            out[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[place : place + length] = rng.bytes(length)
        elif kind == 2:
            out = out[: max(1, place)] if rng.random() < 0.3 else out[:place] + out[place + length :] or bytearray(b"x")
        else:
            out[place:place] = rng.bytes(length)
    return bytes(out)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_mutated_lists_are_read_or_refused_by_name(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(12)
    columns = {
        "url": [f"http://a/{index}" for index in range(50)],
        "caption": [f"caption {index}, 图" for index in range(50)],
    }
    table = pa.table(columns | {"punsafe": rng.random(50), "NSFW": ["UNSURE"] * 50})
    path = tmp_path / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, compression="zstd")
    elif kind == "csv":
        pa.csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in table.to_pylist()))
    whole, refused = path.read_bytes(), 0
    for _ in range(FILES):
        path.write_bytes(damaged(whole, rng))
        try:
            for part in list_rows(ListingConfig(source="table", path=str(path)), 0):
                assert part["url"].null_count == part["caption"].null_count == 0
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error), error
    assert refused > FILES / 10


def test_mutated_artifacts_are_read_or_refused_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(13)
    path = tmp_path / "00000.parquet"
    write_table(
        pa.table({"key": [str(index) for index in range(50)], "clip_similarity": rng.random(50)}), path, "scores"
    )
    whole, refused = path.read_bytes(), 0
    for _ in range(FILES):
        path.write_bytes(damaged(whole, rng))
        try:
            read_table(path, "scores")
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error), error
    assert refused > FILES / 2
