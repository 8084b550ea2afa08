"""Two runs to compare, with a fake CLIP."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.clip.scorer import ClipScorer
from tests.helpers.compared import make_runs
from tests.helpers.judged import fake_clip


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of A and B, which nobody may write to."""
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipScorer, "load", fake_clip)
