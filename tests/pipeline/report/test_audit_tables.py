"""Audits of training data and samples, side by side."""

from __future__ import annotations

from typing import Any

from dataprep.card.audit import AuditCounts, build_audit
from pipeline.report.audit_tables import tabulate_audits


def audit(captions: list[str], **columns: list[Any]) -> dict[str, Any]:
    counts = AuditCounts()
    counts.add_captions(captions)
    counts.add_measured(columns)
    return build_audit(counts, {})


def test_counts_and_shares_of_both_are_side_by_side() -> None:
    data = audit(["a woman", "a man", "a dog", "a cat"], faces=[0, 10, 3], text_area=[0.0, 0.3], label_medium=["a map"])
    samples = audit(["a man", "a man"], faces=[0, 1], text_area=[0.03, 0.0, 0.0, 0.0], label_medium=["a photo"])
    tables = {table["title"]: table for table in tabulate_audits(data, samples)}
    people = tables["People that captions and prompts name"]
    assert people["columns"] == ["people", "#captions", "#share", "#prompts", "#share"]
    assert people["rows"][:2] == [["women", 1, "25.0%", 0, "0.0%"], ["men", 1, "25.0%", 2, "100.0%"]]
    assert tables["Faces"]["rows"] == [
        ["0", 1, "33.3%", 1, "50.0%"],
        ["1", 0, "0.0%", 1, "50.0%"],
        ["3", 1, "33.3%", 0, "0.0%"],
        ["5 or more", 1, "33.3%", 0, "0.0%"],
    ]
    assert [row[0] for row in tables["Share that text covers"]["rows"]] == [
        *("none", "below 1%", "from 1%", "from 5%", "from 20%", "from 50%")
    ]
    assert tables["Labels by CLIP: medium"]["rows"] == [
        ["a map", 1, "100.0%", 0, "0.0%"],
        ["a photo", 0, "0.0%", 1, "100.0%"],
    ]


def test_one_of_the_two_may_be_missing_and_nothing_found_has_no_table() -> None:
    data = audit(["a woman"], watermark=[0.1])
    tables = tabulate_audits(data, None)
    assert [table["title"] for table in tables] == [
        "People that captions and prompts name",
        "Watermark: probability of a watermark",
    ]
    assert tables[1]["rows"][0] == ["below 0.2", 1, "100.0%", "", ""]
    assert tabulate_audits(None, None) == [] and tabulate_audits(audit(["a cat"]), audit([])) == []
