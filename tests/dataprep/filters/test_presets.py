"""Recipes against a plain implementation of their source, on generated metadata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from dataprep.annotate import compute_alpha_share, count_words
from dataprep.filters.config import SelectConfig
from dataprep.filters.pair_shards import PairShard
from dataprep.filters.presets import RECIPES, expand_recipe
from dataprep.filters.select import select_pairs
from dataprep.filters.steps import LocalRunner
from dataprep.io.parquet import read_table
from dataprep.io.schemas import ANNOTATIONS
from tests.helpers.paths import ROOT
from tests.helpers.selection import write_shards

ROWS, SHARD = 100_000, 10_000
WORDS = ["a", "red", "cat", "on", "the", "mat", "near", "old", "houses", "猫", "图片", "IMG_1.jpg", "12", "!!"]


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[PairShard], list[dict[str, Any]]]:
    """Rows around every limit of every recipe, as files and as dicts."""
    rng = np.random.default_rng(7)
    sides = rng.choice([100, 199, 200, 201, 511, 512, 600, 601, 1024], (ROWS, 2))
    phrases = [" ".join(rng.choice(WORDS, rng.integers(0, 6))) for _ in range(4000)]
    captions = [phrases[index] for index in rng.integers(0, len(phrases), ROWS)]
    chance: Callable[[], np.ndarray] = lambda: rng.integers(0, 101, ROWS) / 100  # noqa: E731  the limits themselves too
    listed = {
        "url": [f"http://a.test/{index}" for index in rng.integers(0, 2000, ROWS)],
        "original_bytes": rng.choice([100, 4999, 5000, 5001, 90_000], ROWS),
        "listed_similarity_b32": pa.array(chance().astype(np.float32), mask=rng.random(ROWS) < 0.02),
        "listed_similarity_l14": pa.array(chance(), mask=rng.random(ROWS) < 0.02),
        "listed_aesthetic": pa.array(rng.integers(40, 80, ROWS) / 10, mask=rng.random(ROWS) < 0.02),
        "listed_unsafe": pa.array(chance(), mask=rng.random(ROWS) < 0.02),
        "listed_watermark": pa.array(chance().astype(np.float32), mask=rng.random(ROWS) < 0.02),
    }
    ok = rng.random(ROWS) < 0.95
    rows = [
        {
            "key": f"{index:09d}",
            "ok": bool(ok[index]),
            "width": int(sides[index, 0]) if ok[index] else None,
            "height": int(sides[index, 1]) if ok[index] else None,
            "aspect": float(sides[index].max() / sides[index].min()) if ok[index] else None,
            "sha256": f"{index:064x}",
            "caption": caption,
            "caption_chars": len(caption),
            "caption_words": count_words(caption),
            "alpha_share": compute_alpha_share(caption),
            "language": ("en", "de", "zh")[index % 3],
        }
        for index, caption in enumerate(captions)
    ]
    annotations = pa.Table.from_pylist(rows, schema=ANNOTATIONS)
    downloads = pa.table({"key": annotations["key"]} | listed)
    pieces = range(0, ROWS, SHARD)
    shards = write_shards(
        tmp_path_factory.mktemp("metadata"),
        [annotations.slice(start, SHARD) for start in pieces],
        None,
        [downloads.slice(start, SHARD) for start in pieces],
    )
    plain = [row | more for row, more in zip(rows, downloads.drop(["key"]).to_pylist(), strict=True)]
    return shards, plain


Row = dict[str, Any]


def datacomp_basic(rows: list[Row]) -> list[Row]:
    def passes(row: Row) -> bool:
        shorter, longer = sorted((row["width"], row["height"]))
        text = row["language"] == "en" and len(row["caption"].split()) > 2 and len(row["caption"]) > 5
        return text and shorter >= 200 and longer / shorter <= 3.0

    return [row for row in rows if passes(row)]


def datacomp_clip_top30(rows: list[Row]) -> list[Row]:
    scored = [row for row in rows if row["listed_similarity_l14"] is not None]
    values = sorted((row["listed_similarity_l14"] for row in scored), reverse=True)
    return [row for row in scored if row["listed_similarity_l14"] >= values[int(len(values) * 0.3)]]


def similar(row: Row, least: float) -> bool:
    value = row["listed_similarity_b32"]
    return value is not None and bool(np.float32(value) >= np.float32(least))


def laion_2b_en(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["language"] == "en" and similar(row, 0.28)]


def laion_400m(rows: list[Row]) -> list[Row]:
    seen, kept = set(), []
    for row in rows:
        if len(row["caption"]) >= 5 and row["original_bytes"] >= 5000 and similar(row, 0.3):
            pair = (row["url"], row["caption"])
            if pair not in seen:
                kept.append(row)
            seen.add(pair)
    return kept


def tagged(row: Row) -> bool:
    return None not in (row["listed_aesthetic"], row["listed_watermark"])


def laion_aesthetic(rows: list[Row]) -> list[Row]:
    return [
        row
        for row in rows
        if tagged(row)
        and row["listed_unsafe"] is not None
        and row["listed_aesthetic"] > 7
        and np.float32(row["listed_watermark"]) < np.float32(0.8)
        and row["listed_unsafe"] < 0.5
    ]


def sd_v1(rows: list[Row]) -> list[Row]:
    return [
        row
        for row in rows
        if tagged(row)
        and row["listed_aesthetic"] >= 5
        and np.float32(row["listed_watermark"]) < np.float32(0.5)
        and min(row["width"], row["height"]) >= 512
    ]


READINGS = {
    "datacomp-basic": datacomp_basic,
    "datacomp-clip-top30": datacomp_clip_top30,
    "laion-2b-en": laion_2b_en,
    "laion-400m": laion_400m,
    "laion-aesthetic": laion_aesthetic,
    "sd-v1": sd_v1,
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_keeps_what_a_plain_reading_keeps(
    name: str, metadata: tuple[list[PairShard], list[Row]], tmp_path: Path
) -> None:
    shards, rows = metadata
    selection = select_pairs(shards, SelectConfig(recipe=name), LocalRunner(tmp_path))
    tables = [read_table(path, "selection", ["key", "keep"]) for path in selection.tables.values()]
    kept = [row["key"] for table in tables for row in table.to_pylist() if row["keep"]]
    expected = [row["key"] for row in READINGS[name]([row for row in rows if row["ok"]])]
    assert 100 < len(expected) < ROWS / 2
    assert kept == expected


def test_keys_beside_a_recipe_override_it() -> None:
    config = SelectConfig(recipe="datacomp-basic", min_side=256, exact_duplicates=True)
    assert (config.min_side, config.exact_duplicates, config.max_aspect) == (256, True, 3.0)
    again = SelectConfig.model_validate(config.model_dump())
    assert again == config


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ValidationError, match="did you mean laion-2b-en"):
        SelectConfig(recipe="laion-2ben")
    with pytest.raises(ValidationError, match="give one of datacomp-basic"):
        SelectConfig(recipe="zzz")


def test_every_recipe_sets_keys_that_there_are() -> None:
    for name, given in RECIPES.items():
        assert set(given) <= set(expand_recipe(name)) <= set(SelectConfig.model_fields), name


def test_the_documents_name_every_recipe() -> None:
    text = (ROOT / "docs" / "filters.md").read_text()
    described = SelectConfig.model_fields["recipe"].description or ""
    assert all(f"`{name}`" in text and name in described for name in RECIPES)
