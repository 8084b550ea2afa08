"""Selection over shards: funnel, examples, split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dataprep.filters import exchange, pair_shards
from dataprep.filters.config import SelectConfig
from dataprep.filters.near_duplicates import measure_thumbnail_distance
from dataprep.filters.select import EXAMPLES, select_pairs
from dataprep.filters.steps import LocalRunner
from dataprep.io.parquet import read_table
from dataprep.io.schemas import ANNOTATIONS, FACES, TEXT
from tests.helpers.selection import (
    OFF,
    choose,
    float32,
    make_repetitive_rows,
    name_filter,
    reasons,
    row,
    write_shards,
)


def test_a_column_that_a_later_shard_lacks_is_null_there() -> None:
    config = OFF.model_copy(update={"unsafe_below": 0.5})
    written, _ = choose([[row(0)], [row(1)]], config, None, [{"listed_unsafe": [0.1]}, {}])
    assert [table["keep"].to_pylist() for table in written] == [[True], [False]]


def test_funnel_adds_up_and_names_the_reason() -> None:
    rows = [row(0), row(1, aspect=9.0), row(2, caption="click here to buy"), row(3, sha256=row(0)["sha256"])]
    config = OFF.model_copy(update={"exact_duplicates": True})
    _, selection = choose([rows[:2], rows[2:]], config)
    funnel = selection.funnel
    assert [step["in"] for step in funnel][1:] == [step["kept"] for step in funnel][:-1]
    assert funnel[0]["in"] == selection.rows == 4 and funnel[-1]["kept"] == selection.kept == 1
    assert [step["filter"] for step in funnel if step["dropped"]] == ["max_aspect", "boilerplate", "exact_duplicate"]
    assert all(set(step) == {"filter", "in", "dropped", "kept", "reason"} for step in funnel)
    assert all(step["reason"] for step in funnel if step["dropped"])


def test_examples_are_the_first_few_rows_of_each_filter() -> None:
    rows = [row(index, aspect=9.0 if index % 2 else 1.0) for index in range(40)]
    _, selection = choose([rows[:6], rows[6:]], OFF)
    found = selection.examples["max_aspect"]
    keys = [f"{index:09d}" for index in range(1, 2 * EXAMPLES, 2)]
    assert found == [{"shard": int(int(key) >= 6), "key": key} for key in keys]
    assert list(selection.examples) == [step["filter"] for step in selection.funnel]
    assert selection.examples["downloaded"] == []


def test_selection_is_row_aligned_over_shards_and_duplicates_are_global() -> None:
    first, second = [row(0), row(1)], [row(2, sha256=row(0)["sha256"]), row(3)]
    written, _ = choose([first, second], SelectConfig())
    assert [table["key"].to_pylist() for table in written] == [
        [item["key"] for item in first],
        [item["key"] for item in second],
    ]
    assert [table["keep"].to_pylist() for table in written] == [[True, True], [False, True]]


def test_a_shard_without_kept_rows_is_written() -> None:
    written, selection = choose([[row(0, ok=False)], [row(1)], []], SelectConfig())
    assert [table["keep"].to_pylist() for table in written] == [[False], [True], []]
    assert selection.rows == 2


def test_a_dropped_first_occurrence_leaves_its_duplicate() -> None:
    same = row(0)["sha256"]
    rows = [row(0, aspect=9.0), row(1, sha256=same), row(2, sha256=same)]
    assert reasons(rows, SelectConfig()) == ["max_aspect", None, "exact_duplicate"]


def test_the_split_follows_the_content() -> None:
    rows = [row(index) for index in range(2000)]
    config = OFF.model_copy(update={"validation_fraction": 0.1})
    splits = choose([rows], config)[0][0]["split"].to_pylist()
    assert 0.07 < splits.count("validation") / 2000 < 0.13
    again = choose([rows[::-1]], config)[0][0]["split"].to_pylist()
    assert again == splits[::-1]
    dropped = choose([[row(0), row(1, aspect=9.0)]], config)[0][0]
    assert dropped["split"].to_pylist()[1] is None


def test_files_of_other_rows_are_refused(tmp_path: Path) -> None:
    config = OFF.model_copy(update={"min_similarity": 0.1})
    tables = [pa.Table.from_pylist([row(0)], schema=ANNOTATIONS)]
    scores = [pa.table({"key": ["x"], "clip_similarity": float32([0.1])})]
    with pytest.raises(ValueError, match="make the scores of this shard again"):
        select_pairs(write_shards(tmp_path, tables, scores), config, LocalRunner(tmp_path))


def test_tables_do_not_depend_on_how_rows_are_dealt_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SelectConfig(min_side=0, top_similarity=0.8, max_caption_repeats=2, duplicate_pairs=True)
    tables, scores, downloads = make_repetitive_rows(900)
    found = []
    for number, (part_bytes, group_rows, chunk_bytes) in enumerate([(1 << 24, 1000, 1 << 24), (3000, 100, 900)]):
        monkeypatch.setattr(exchange, "PART_BYTES", part_bytes)
        monkeypatch.setattr(exchange, "CHUNK_BYTES", chunk_bytes)
        monkeypatch.setattr(pair_shards, "GROUP_ROWS", group_rows)
        folder = tmp_path / str(number)
        folder.mkdir()
        selection = select_pairs(write_shards(folder, tables, scores, downloads), config, LocalRunner(folder))
        written = [Path(path).read_bytes() for path in selection.tables.values()]
        found.append((written, selection.funnel, selection.examples))
    assert found[0] == found[1]
    funnel = {step["filter"]: step["dropped"] for step in found[0][1]}
    rules = ("top_similarity", "duplicate_pair", "repeated_caption", "exact_duplicate", "near_duplicate")
    assert all(funnel[name] > 5 for name in rules), funnel


def test_verdicts_are_those_of_going_through_the_rows_in_order(tmp_path: Path) -> None:
    config = SelectConfig(min_side=0, top_similarity=0.8, max_caption_repeats=2, duplicate_pairs=True)
    tables, scores, downloads = make_repetitive_rows(900)
    selection = select_pairs(write_shards(tmp_path, tables, scores, downloads), config, LocalRunner(tmp_path))
    written = pa.concat_tables(read_table(path, "selection") for path in selection.tables.values())
    rows = pa.concat_tables(tables).to_pylist()
    similar = np.concatenate([table["clip_similarity"].to_numpy() for table in scores])
    urls = [url for table in downloads for url in table["url"].to_pylist()]
    filters, originals = select_in_order(rows, similar, urls, config)
    assert [name_filter(reason) for reason in written["reason"].to_pylist()] == filters
    keys = [row["key"] for row in rows]
    assert written["duplicate_of"].to_pylist() == [None if row is None else keys[row] for row in originals]


def select_in_order(
    rows: list[dict[str, Any]], similar: np.ndarray, urls: list[str], config: SelectConfig
) -> tuple[list[str | None], list[int | None]]:
    """Selects row by row in plain Python; returns the filter of each dropped row, and the row that it repeats."""
    found: list[str | None] = [None if row["aspect"] <= 3 else "max_aspect" for row in rows]
    originals: list[int | None] = [None] * len(rows)

    def left() -> list[int]:
        return [index for index, name in enumerate(found) if name is None]

    known = sorted((float(similar[index]) for index in left() if not np.isnan(similar[index])), reverse=True)
    least = known[int(len(known) * 0.8)]
    for index in left():
        if not similar[index] >= least:
            found[index] = "top_similarity"
    captions = [" ".join(row["caption"].casefold().split()) for row in rows]
    pairs = [f"{url} {row['caption']}" for url, row in zip(urls, rows, strict=True)]
    hashes = [row["sha256"][:32] for row in rows]
    rules = (("duplicate_pair", pairs, 1), ("repeated_caption", captions, 2), ("exact_duplicate", hashes, 1))
    for name, values, most in rules:
        seen: dict[str, list[int]] = {}
        for index in left():
            if len(before := seen.setdefault(values[index], [])) >= most:
                found[index], originals[index] = name, before[0]
            before.append(index)
    kept: list[int] = []
    for index in left():
        thumbnail = np.frombuffer(rows[index]["thumbnail"], np.uint8).reshape(1, 64, 3)
        for other in kept:
            if (rows[index]["phash"] ^ rows[other]["phash"]).bit_count() <= 6:
                right = np.frombuffer(rows[other]["thumbnail"], np.uint8).reshape(1, 64, 3)
                if measure_thumbnail_distance(thumbnail, right)[0] <= config.near_duplicate_colour:
                    found[index], originals[index] = "near_duplicate", other
                    break
        else:
            kept.append(index)
    return found, originals


def test_filters_read_what_detectors_measured(tmp_path: Path) -> None:
    """The annotations have the columns of faces and text only where these were looked for."""
    measured = pa.schema([*ANNOTATIONS, *FACES, *TEXT])
    rows = [row(index, faces=index, largest_face=0.1 * index, text_area=0.05 * index) for index in range(4)]
    config = OFF.model_copy(update={"max_faces": 2, "max_text_area": 0.05, "max_caption_repeats": None})
    shards = write_shards(tmp_path, [pa.Table.from_pylist(rows, schema=measured)])
    selection = select_pairs(shards, config, LocalRunner(tmp_path))
    found = read_table(selection.tables[0], "selection")["reason"].to_pylist()
    assert [name_filter(reason) for reason in found] == [None, None, "text_area", "faces"]
