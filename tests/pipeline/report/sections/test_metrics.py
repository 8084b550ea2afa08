"""The metrics section: metrics that were not requested, and metrics without a table of their own."""

from __future__ import annotations

from pipeline.report.sections.metrics import show_metrics


def test_metrics_that_were_not_requested_are_left_out() -> None:
    content = show_metrics({"images": 1, "candidates": 1})
    assert content.charts == {}
    assert not any(content.values[name] for name in ("composition", "distances", "retrieval", "sweep", "more"))


def test_metric_without_a_table_of_its_own_is_a_list_of_values() -> None:
    interval = {"value": 0.25, "low": 0.2, "high": 0.30001}
    values = {"mean": interval, "pairs": 12345, "model": "x <y>", "none": None, "share": 0.123456, "ok": True}
    more = {"alignment": {"title": "Alignment", "description": "How well.", "values": values}, "bare": {"values": {}}}
    shown, bare = show_metrics({"more": more}).values["more"]
    assert (shown["title"], shown["description"]) == ("Alignment", "How well.")
    assert shown["rows"] == [
        ("mean", "0.25", "0.2 – 0.3"),
        ("pairs", "12,345", ""),
        ("model", "x <y>", ""),
        ("none", "", ""),
        ("share", "0.1235", ""),
        ("ok", "true", ""),
    ]
    assert (bare["title"], bare["rows"]) == ("bare", [])
