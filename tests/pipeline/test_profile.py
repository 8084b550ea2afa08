"""The Chrome trace that `run --profile` writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from pipeline.profile import profiled, span


def test_spans_are_written_also_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(ValueError, match="broken"), profiled(str(path)), span("a span of test_profile", stage="pack"):
        raise ValueError("broken")
    found = [event for event in json.loads(path.read_text()) if event["name"] == "a span of test_profile"]
    assert len(found) == 1 and found[0]["ph"] == "X" and found[0]["dur"] > 0 and found[0]["args"] == {"stage": "pack"}


def test_a_file_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--profile=.*cannot be written"), profiled(str(tmp_path)):
        pytest.fail("the body ran")
