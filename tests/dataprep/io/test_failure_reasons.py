"""Failure reasons and their documentation."""

from __future__ import annotations

from dataprep.io.failure_reasons import REASONS
from tests.helpers.paths import ROOT


def test_every_reason_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "download.md").read_text()
    for name, reason in REASONS.items():
        assert f"| `{name}` | {reason.status} | {'yes' if reason.transient else ''} | {reason.meaning} |" in text
