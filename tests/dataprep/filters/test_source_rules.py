"""Thresholds by source: which keys, which rules a shard gets, and the funnel of each source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dataprep.filters import pair_shards
from dataprep.filters.config import SelectConfig
from dataprep.filters.select import Selection, select_pairs
from dataprep.filters.source_rules import (
    ALL,
    SourceRules,
    check_source_keys,
    list_filter_names,
    list_source_keys,
    merge_source_keys,
)
from dataprep.filters.steps import LocalRunner
from dataprep.io.errors import UserError
from dataprep.io.parquet import read_table
from dataprep.io.schemas import ANNOTATIONS
from tests.helpers.selection import OFF, name_filter, row, write_shards

AVAILABLE = {*ANNOTATIONS.names, "clip_similarity"}
STARTS = {"web": 0, "photos": 2}


def select(
    folder: Path, keys: dict[str, dict[str, Any]], config: SelectConfig = OFF, least: float | None = None
) -> tuple[list[list[str | None]], Selection]:
    """Four shards of three rows, two of each source; row i is 50 + 10 i pixels wide, its similarity is i / 10."""
    rows = [[row(3 * number + at, height=50 + 10 * at) for at in range(3)] for number in range(4)]
    scores = [pa.table({"key": [one["key"] for one in part], "clip_similarity": [0.0, 0.1, 0.2]}) for part in rows]
    shards = write_shards(folder, [pa.Table.from_pylist(part, schema=ANNOTATIONS) for part in rows], scores)
    chosen = select_pairs(shards, config, LocalRunner(folder), least, SourceRules(keys=keys, starts=STARTS))
    tables = [read_table(path, "selection")["reason"].to_pylist() for _, path in sorted(chosen.tables.items())]
    return tables, chosen


def test_a_source_overrides_thresholds_and_the_funnel_counts_by_source(tmp_path: Path) -> None:
    config = OFF.model_copy(update={"min_side": 60, "max_caption_repeats": 8})
    tables, chosen = select(tmp_path, {"photos": {"min_side": 70, "max_aspect": 1.5}}, config)
    web, photos = "min_side: shorter side below 60 pixels", "min_side: shorter side below 70 pixels"
    assert tables == [[web, None, None]] * 2 + [[photos, photos, None]] * 2
    (aspect, side) = (next(s for s in chosen.funnel if s["filter"] == name) for name in ("max_aspect", "min_side"))
    assert {name: step["in"] for name, step in aspect["sources"].items()} == {"web": 6, "photos": 6}
    assert side["reason"] == "web: shorter side below 60 pixels; photos: shorter side below 70 pixels"
    assert side["sources"] == {
        "web": {"in": 6, "dropped": 2, "kept": 4, "reason": "shorter side below 60 pixels"},
        "photos": {"in": 6, "dropped": 4, "kept": 2, "reason": "shorter side below 70 pixels"},
    }
    for step in chosen.funnel:
        assert sum(found["dropped"] for found in step["sources"].values()) == step["dropped"]
    assert sum(found["kept"] for found in chosen.funnel[-1]["sources"].values()) == chosen.kept == 6


def test_set_filters_are_counted_by_source_too(tmp_path: Path) -> None:
    config = OFF.model_copy(update={"max_caption_repeats": 5})
    tables, chosen = select(tmp_path, {"web": {"min_side": 60}}, config)
    assert [len([why for why in table if name_filter(why) == "repeated_caption"]) for table in tables] == [0, 0, 2, 3]
    step = next(step for step in chosen.funnel if step["filter"] == "repeated_caption")
    assert {name: (found["in"], found["dropped"]) for name, found in step["sources"].items()} == {
        "web": (4, 0),
        "photos": (6, 5),
    }


def test_a_filter_of_one_source_judges_no_other(tmp_path: Path) -> None:
    tables, chosen = select(tmp_path, {"photos": {"min_similarity": 0.15}})
    assert [[name_filter(why) for why in table] for table in tables] == [[None] * 3] * 2 + [
        ["min_similarity", "min_similarity", None]
    ] * 2
    step = next(step for step in chosen.funnel if step["filter"] == "min_similarity")
    assert (step["in"], step["dropped"], step["reason"]) == (12, 4, "CLIP similarity below 0.15")
    assert list(step["sources"]) == ["photos"]


def test_a_sources_similarity_overrides_that_of_the_clip_section(tmp_path: Path) -> None:
    for name in ("own", "off"):
        (tmp_path / name).mkdir()
    tables, _ = select(tmp_path / "own", {"photos": {"min_similarity": 0.2}}, least=0.05)
    assert [[why is None for why in table] for table in tables] == [[False, True, True]] * 2 + [
        [False, False, True]
    ] * 2
    off, _ = select(tmp_path / "off", {"photos": {"min_similarity": None}}, least=0.05)
    assert [why is None for why in off[3]] == [True] * 3


def test_the_result_is_the_same_for_any_grouping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: dict[str, dict[str, Any]] = {"photos": {"min_side": 70}, "web": {"max_aspect": 1.4}}
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    tables, chosen = select(tmp_path / "one", keys)
    monkeypatch.setattr(pair_shards, "GROUP_ROWS", 3)
    again, other = select(tmp_path / "many", keys)
    assert tables == again and chosen.funnel == other.funnel


def test_a_shard_is_of_the_source_that_begins_before_it() -> None:
    rules = SourceRules(starts={"b": 3, "a": 0, "c": 7})
    assert [rules.find_source(shard) for shard in (0, 2, 3, 6, 7, 99)] == ["a", "a", "b", "b", "c", "c"]
    assert SourceRules().find_source(5) == ALL
    assert list(SourceRules().make_filters(OFF, AVAILABLE, None)) == [ALL]


def test_filters_keep_their_order_over_sources() -> None:
    rules = SourceRules(keys={"a": {"min_similarity": 0.1}, "b": {"max_aspect": 2.0}}, starts={"a": 0, "b": 1})
    made = rules.make_filters(OFF, AVAILABLE, None)
    names = list_filter_names(made)
    assert names.index("max_aspect") < names.index("min_similarity")
    assert "min_similarity" not in made["b"] and "min_similarity" in made["a"]


def test_keys_that_are_not_of_a_source_are_refused_with_those_that_are() -> None:
    assert "min_side" in list_source_keys() and "similarity" not in list_source_keys()
    check_source_keys({"min_side": 5, "languages": ["en"]})
    for key, value in (("top_similarity", 0.3), ("near_duplicate_bits", 3), ("validation_fraction", 0.1)):
        with pytest.raises(ValueError, match=rf"^{key} is for the rows of all sources together; set it in section"):
            check_source_keys({key: value})
    with pytest.raises(ValueError, match=r"^min_sides: unknown key; a source may set max_aspect, min_side"):
        check_source_keys({"min_sides": 3})
    with pytest.raises(ValueError, match=r"^min_side: "):
        check_source_keys({"min_side": "many"})


def test_what_does_not_fit_the_section_is_refused() -> None:
    config = SelectConfig(max_bytes=100)
    assert merge_source_keys(config, {"min_bytes": 50}).min_bytes == 50
    with pytest.raises(ValueError, match="min_bytes 200 is above max_bytes 100"):
        merge_source_keys(config, {"min_bytes": 200})


def test_a_missing_column_names_the_source() -> None:
    rules = SourceRules(keys={"web": {"max_faces": 1}}, starts=STARTS)
    with pytest.raises(UserError, match=r"^listing\.sources\.web\.select\.max_faces: needs the column faces"):
        rules.make_filters(OFF, AVAILABLE, None)
