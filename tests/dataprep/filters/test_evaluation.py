"""Precision and recall of filters."""

from __future__ import annotations

import json

import pyarrow as pa

from dataprep.filters.config import SelectConfig
from dataprep.filters.evaluation import evaluate_filters
from tests.helpers.selection import choose, row


def test_precision_and_recall() -> None:
    same = row(0)["sha256"]
    rows = [row(0), row(1, sha256=same), row(2, aspect=6.0), row(3, width=10), row(4, aspect=9.0), row(5)]
    truths = [None, ("exact_duplicate", 0), ("extreme_aspect", None), ("tiny", None), None, ("wrong_caption", 0)]
    texts = [json.dumps({"claim": {}, "trouble": item and item[0], "of": item and item[1]}) for item in truths]
    download = pa.table({"key": [item["key"] for item in rows], "truth": texts})
    written, _ = choose([rows], SelectConfig())
    quality = evaluate_filters([download], written)
    assert quality is not None
    assert quality["troubles"]["tiny"] == {"planted": 1, "dropped": 1, "reasons": {"min_side": 1}}
    assert quality["troubles"]["wrong_caption"]["dropped"] == 0
    assert quality["clean"] == {"rows": 2, "dropped": 1, "reasons": {"max_aspect": 1}}
    assert quality["filters"]["max_aspect"] == {"dropped": 2, "right": 1, "precision": 0.5, "recall": 1.0}
    assert quality["filters"]["exact_duplicate"]["recall"] == 1.0
    assert evaluate_filters([download.drop(["truth"])], written) is None
