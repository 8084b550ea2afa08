"""Experiment trackers beside TensorBoard: Weights & Biases and MLflow, each with one run over all resumes."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from dataprep.io import storage
from dataprep.io.errors import UserError
from train.config import TrainConfig


class Tracker(Protocol):
    """Takes the rows of a training log."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds the values of one row."""

    def finish(self) -> None:
        """Sends what is left and closes the run."""


def start_trackers(folder: str, config: TrainConfig) -> list[Tracker]:
    """Starts, or resumes, the run of this folder in every tracker that the config asks for.

    Raises:
        UserError: the tracker's library is missing, or its server does not answer.
    """
    started = [start(folder, config) for start in TRACKERS.values()]
    return [tracker for tracker in started if tracker is not None]


def _name_run(folder: str) -> str:
    return "/".join(folder.rstrip("/").split("/")[-2:])


def _identify(folder: str) -> str:
    return hashlib.sha256(folder.encode()).hexdigest()[:16]


def start_wandb(folder: str, config: TrainConfig) -> Tracker | None:
    """Returns the Weights & Biases run of this folder."""
    if config.wandb == "off":
        return None
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"wandb={config.wandb}: the library is not installed; `pip install wandb`, or set wandb=off"
        ) from error
    local = folder if storage.is_local(folder) else tempfile.mkdtemp(prefix="imagen-ray-")
    run = wandb.init(
        project=config.wandb_project,
        id=_identify(folder),
        name=_name_run(folder),
        dir=local,
        mode="online" if config.wandb == "online" else "offline",
        resume="allow",
        config=config.model_dump(mode="json"),
        settings=wandb.Settings(silent=True, console="off"),
    )
    return cast(Tracker, run)


class MlflowRun:
    """A run of MLflow, found again by the tag ``imagen_ray.folder`` when the training resumes."""

    TAG = "imagen_ray.folder"

    def __init__(self, mlflow: Any, folder: str, config: TrainConfig) -> None:
        self.client = mlflow.MlflowClient(tracking_uri=config.mlflow)
        name = config.mlflow_experiment
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name)
        runs = self.client.search_runs([experiment], f"tags.`{self.TAG}` = '{_identify(folder)}'", max_results=1)
        if runs:
            self.run = runs[0].info.run_id
            self.client.update_run(self.run, "RUNNING")
            return
        tags = {self.TAG: _identify(folder)}
        self.run = self.client.create_run(experiment, tags=tags, run_name=_name_run(folder)).info.run_id
        for key, value in config.model_dump(mode="json").items():
            self.client.log_param(self.run, key, value)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds the values of one row."""
        for name, value in values.items():
            self.client.log_metric(self.run, name, value, step=step)

    def finish(self) -> None:
        """Marks the run as finished."""
        self.client.set_terminated(self.run)


def start_mlflow(folder: str, config: TrainConfig) -> Tracker | None:
    """Returns the MLflow run of this folder."""
    if config.mlflow is None:
        return None
    try:
        import mlflow
    except ImportError as error:
        raise UserError(
            f"mlflow={config.mlflow}: the library is not installed; `pip install mlflow-skinny`, or leave mlflow out"
        ) from error
    try:
        return MlflowRun(mlflow, folder, config)
    except mlflow.exceptions.MlflowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"mlflow={config.mlflow}: {reason}; correct the address, or leave mlflow out") from error


TRACKERS: dict[str, Callable[[str, TrainConfig], Tracker | None]] = {"wandb": start_wandb, "mlflow": start_mlflow}
