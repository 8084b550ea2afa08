"""Precision and recall of the filters on the embedded corpus, whose listing records the planted trouble."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataprep.filters.registry import FILTERS
from dataprep.io.failure_reasons import FORGOTTEN

DUPLICATES = ("exact_duplicate", "near_duplicate")


def evaluate_filters(downloads: Sequence[pa.Table], selection: Sequence[pa.Table]) -> dict[str, Any] | None:
    """Compares a selection with the listing's column ``truth``; None if the listing has no such column.

    Returns:
        "troubles": {kind: planted, dropped, reasons {filter: rows}}. "clean": the same counts of rows without trouble.
        "filters": {filter: dropped, right (dropped rows with trouble that it catches), precision = right / dropped,
        recall = right / rows with such trouble that reached it (a duplicate counts if its original reached it too)};
        None if the denominator is 0.
    """
    if not downloads or any("truth" not in table.column_names for table in downloads):
        return None
    # A forgotten row has no truth and is not counted.
    unknown = json.dumps({"trouble": FORGOTTEN, "of": None})
    truths = [json.loads(truth or unknown) for table in downloads for truth in table["truth"].to_pylist()]
    dropped_by = [reason and reason.split(":")[0] for table in selection for reason in table["reason"].to_pylist()]
    troubles, clean = _count_troubles(truths, dropped_by)
    order = [name for name in FILTERS if name in dropped_by]
    return {
        "troubles": troubles,
        "clean": clean,
        "filters": {name: _evaluate_filter(name, truths, dropped_by) for name in order},
    }


def _count_troubles(
    truths: list[dict[str, Any]], dropped_by: list[str | None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    counted: dict[str | None, Counter[str | None]] = {}
    for truth, name in zip(truths, dropped_by, strict=True):
        counted.setdefault(truth["trouble"], Counter())[name] += 1
    counted.pop(FORGOTTEN, None)
    described = {
        kind: {
            "planted": reasons.total(),
            "dropped": reasons.total() - reasons[None],
            "reasons": {name: reasons[name] for name in FILTERS if reasons[name]},
        }
        for kind, reasons in counted.items()
    }
    clean = described.pop(None, {"planted": 0, "dropped": 0, "reasons": {}})
    clean["rows"] = clean.pop("planted")
    return {str(kind): described[kind] for kind in sorted(described, key=str)}, clean


def _evaluate_filter(name: str, truths: list[dict[str, Any]], dropped_by: list[str | None]) -> dict[str, Any]:
    """Returns the counts, precision and recall of one filter."""
    stages: dict[str | None, int] = {stage: index for index, stage in enumerate(FILTERS)}
    stages[None] = len(FILTERS)
    dropped = right = meant = caught = 0
    for truth, by in zip(truths, dropped_by, strict=True):
        kind = truth["trouble"]
        targeted = kind in FILTERS[name].catches
        dropped += by == name
        right += by == name and targeted
        reached = targeted and stages[by] >= stages[name]
        if reached and kind in DUPLICATES:
            original = truth["of"]
            reached = original < len(dropped_by) and stages[dropped_by[original]] >= stages[name]
            # Both filters catch both kinds of duplicate; recall is of the filter's own kind.
            reached = reached and kind == name
        meant += reached
        caught += reached and by == name
    precision, recall = (right / dropped if dropped else None), (caught / meant if meant else None)
    return {"dropped": dropped, "right": right, "precision": precision, "recall": recall}
