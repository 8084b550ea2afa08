"""``imagen_ray.run`` is ``imagen-ray run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imagen_ray import _run, load_config, run
from pipeline.store.run import Run
from tests.helpers.paths import ROOT


def test_it_executes_the_config_and_returns_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def run_pipeline(config: Any, *arguments: Any) -> Run:
        calls.append((config, *arguments))
        return Run(config.run)

    monkeypatch.setattr(_run, "run_pipeline", run_pipeline)
    config = load_config(ROOT / "configs" / "smoke.yaml", [f"run={tmp_path}/run"])
    assert run(config, until="select", keep=["listing"]).root == f"{tmp_path}/run"
    assert calls == [(config, f"imagen_ray.run('{tmp_path}/run')", "select", ["listing"])]
