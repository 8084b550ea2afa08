"""How right the filters were, judged on the embedded corpus, whose listing says what trouble was planted where."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dataprep.redact import FORGOTTEN
from dataprep.rules import ALL_FILTERS

CAPTION_FILTERS = frozenset({"boilerplate", "caption_chars", "caption_words", "alpha_share", "language"})
DUPLICATES = ("exact_duplicate", "near_duplicate")
DUPLICATE_FILTERS = frozenset({*DUPLICATES, "embedding_duplicate"})
# Trouble planted in the embedded corpus -> the filters that are there to catch it.
TARGETS: dict[str, frozenset[str]] = {
    "dead_link": frozenset({"downloaded"}),
    "truncated": frozenset({"downloaded"}),
    "mislabelled": frozenset({"downloaded"}),
    "tiny": frozenset({"min_side", "area"}),
    "extreme_aspect": frozenset({"max_aspect", "min_side", "area"}),
    "exact_duplicate": DUPLICATE_FILTERS,
    "near_duplicate": DUPLICATE_FILTERS,
    "wrong_caption": frozenset({"min_similarity", "top_similarity"}),
    "boilerplate": CAPTION_FILTERS | {"repeated_caption", "min_similarity", "top_similarity"},
}


def filter_quality(downloads: Sequence[pa.Table], selection: Sequence[pa.Table]) -> dict[str, Any] | None:
    """How right the filters were, where the listing's column ``truth`` says what trouble was planted; else None.

    "troubles": a kind -> planted, dropped, reasons {filter: rows}. "clean": rows without trouble, dropped, reasons.
    "filters": a filter -> dropped, right (dropped with a trouble it is there for), precision = right / dropped,
    recall = right / rows of such trouble that reached it (a duplicate counts where its original is there too);
    null where the denominator is 0.
    """
    if not downloads or any("truth" not in table.column_names for table in downloads):
        return None
    # A row that is forgotten says nothing of itself, and counts for nothing.
    unknown = json.dumps({"trouble": FORGOTTEN, "of": None})
    truths = [json.loads(truth or unknown) for table in downloads for truth in table["truth"].to_pylist()]
    dropped_by = [reason and reason.split(":")[0] for table in selection for reason in table["reason"].to_pylist()]
    troubles, clean = _per_trouble(truths, dropped_by)
    order = [name for name in ALL_FILTERS if name in dropped_by]
    return {"troubles": troubles, "clean": clean, "filters": {name: _judge(name, truths, dropped_by) for name in order}}


def _per_trouble(truths: list[dict[str, Any]], dropped_by: list[str | None]) -> tuple[dict[str, Any], dict[str, Any]]:
    counted: dict[str | None, Counter[str | None]] = {}
    for truth, name in zip(truths, dropped_by, strict=True):
        counted.setdefault(truth["trouble"], Counter())[name] += 1
    counted.pop(FORGOTTEN, None)
    described = {
        kind: {
            "planted": reasons.total(),
            "dropped": reasons.total() - reasons[None],
            "reasons": {name: reasons[name] for name in ALL_FILTERS if reasons[name]},
        }
        for kind, reasons in counted.items()
    }
    clean = described.pop(None, {"planted": 0, "dropped": 0, "reasons": {}})
    clean["rows"] = clean.pop("planted")
    return {str(kind): described[kind] for kind in sorted(described, key=str)}, clean


def _judge(name: str, truths: list[dict[str, Any]], dropped_by: list[str | None]) -> dict[str, Any]:
    """One filter against the truth."""
    stages: dict[str | None, int] = {stage: index for index, stage in enumerate(ALL_FILTERS)}
    stages[None] = len(ALL_FILTERS)
    dropped = right = meant = caught = 0
    for truth, by in zip(truths, dropped_by, strict=True):
        kind = truth["trouble"]
        targeted = kind is not None and name in TARGETS.get(kind, ())
        dropped += by == name
        right += by == name and targeted
        reached = targeted and stages[by] >= stages[name]
        if reached and kind in DUPLICATES:
            original = truth["of"]
            reached = original < len(dropped_by) and stages[dropped_by[original]] >= stages[name]
            # What is there for both exact and near duplicates is meant to be caught by the filter of its own kind.
            reached = reached and kind == name
        meant += reached
        caught += reached and by == name
    precision, recall = (right / dropped if dropped else None), (caught / meant if meant else None)
    return {"dropped": dropped, "right": right, "precision": precision, "recall": recall}
