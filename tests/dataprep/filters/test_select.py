"""Selection over shards: funnel, examples, split."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from dataprep.filters.config import SelectConfig
from dataprep.filters.select import EXAMPLES, select_pairs
from dataprep.io.schemas import ANNOTATIONS
from tests.helpers.selection import OFF, choose, float32, reasons, row, write_shards


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
        select_pairs(write_shards(tmp_path, tables, scores), config, lambda place, table: None)
