"""The Markdown summary: figures without images and captions."""

from __future__ import annotations

from pipeline.report.build import MARKDOWN, build_pages
from pipeline.store.run import Run


def test_summary_has_tables_and_no_captions(run: Run) -> None:
    text = build_pages(run.artifacts(), run.record(), run.events())[MARKDOWN]
    assert text.startswith("# imagen-ray: run\n")
    for words in ("| caption\\_words: too few | 12 | 1 | 11 |", "| train.base | 7 | 9 |", "11 of 13 rows were kept"):
        assert words in text, words
    assert "zebra" not in text  # no captions
    rows = [line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("|")]
    assert set(rows) <= {3, 5, 7}
