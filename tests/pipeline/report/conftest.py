"""A finished run that a test may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.store.run import Run
from tests.helpers.runs import Made


@pytest.fixture
def run(finished_run: Made, tmp_path: Path) -> Run:
    shutil.copytree(finished_run.run.root, tmp_path / "run")
    return Run(str(tmp_path / "run"))
