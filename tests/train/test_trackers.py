"""MLflow beside the log, with its client replaced by one that keeps everything in memory."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dataprep.io.errors import UserError
from tests.helpers.toys import run


class MlflowException(Exception):  # noqa: N818, its name in mlflow
    """As in mlflow.exceptions."""


class Server:
    """MLflow's client and server in one: the calls that are used, with their meaning."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.metrics: list[tuple[str, str, int]] = []

    def __call__(self, tracking_uri: str) -> Server:
        if "down" in tracking_uri:
            raise MlflowException("API request failed: connection refused\ntraceback")
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, f"e{len(self.experiments)}")

    def search_runs(self, experiments: list[str], query: str, max_results: int) -> list[Any]:
        wanted = query.partition(" = ")[2].strip("'")
        found = [run for run, content in self.runs.items() if wanted in content["tags"].values()]
        return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run in found[:max_results]]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
        name = f"r{len(self.runs)}"
        self.runs[name] = {"experiment": experiment, "tags": tags, "name": run_name, "status": "RUNNING", "params": {}}
        return SimpleNamespace(info=SimpleNamespace(run_id=name))

    def update_run(self, run: str, status: str) -> None:
        self.runs[run]["status"] = status

    def set_terminated(self, run: str) -> None:
        self.runs[run]["status"] = "FINISHED"

    def log_param(self, run: str, key: str, value: Any) -> None:
        self.runs[run]["params"][key] = value

    def log_metric(self, run: str, name: str, value: float, step: int) -> None:
        self.metrics.append((run, name, step))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    module = types.ModuleType("mlflow")
    module.MlflowClient = found  # type: ignore[attr-defined]
    module.exceptions = SimpleNamespace(MlflowException=MlflowException)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return found


def test_mlflow_has_one_run_over_a_resume(tmp_path: Path, server: Server) -> None:
    run(tmp_path / "a", 12, mlflow="http://mlflow:5000")
    run(tmp_path / "a", mlflow="http://mlflow:5000")
    ((name, content),) = server.runs.items()
    assert content["status"] == "FINISHED" and content["params"]["batch_size"] == 8
    assert server.experiments == {"imagen-ray": "e0"}
    assert [step for run_id, metric, step in server.metrics if metric == "loss" and run_id == name] == [
        *(4, 8, 12),
        *(8, 12, 16, 20),  # the rows after the checkpoint are written again
    ]


def test_another_training_is_another_run(tmp_path: Path, server: Server) -> None:
    run(tmp_path / "a", 4, mlflow="http://mlflow:5000")
    run(tmp_path / "b", 4, mlflow="http://mlflow:5000", mlflow_experiment="other")
    assert [content["experiment"] for content in server.runs.values()] == ["e0", "e1"]


def test_a_server_that_does_not_answer_is_an_error_of_the_config(tmp_path: Path, server: Server) -> None:
    with pytest.raises(UserError, match=r"^mlflow=http://down: API request failed: connection refused; correct"):
        run(tmp_path, 4, mlflow="http://down")


def test_a_missing_mlflow_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match=r"mlflow=http://x: .*pip install mlflow-skinny"):
        run(tmp_path, 4, mlflow="http://x")
