"""Steps of a selection: the same work on each of several tasks, in this process or on a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dataprep.filters.exchange import Parts, PartWriter

PARTS_FILE = "parts.bin"  # what a step that exchanges records writes
RECORDS = "records"  # its counter
FINISH = "finish"  # the step that writes the selection tables, a task a shard; its files are the stage's own


@dataclass(frozen=True)
class StepTask:
    """A task by number, with the files that it reads whole, by name."""

    id: int
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskResult:
    """What a task wrote, file name -> path, and counted."""

    id: int
    files: Mapping[str, str]
    counters: Mapping[str, int]


class OpenTask(Protocol):
    """A task as its worker sees it: local copies of its files and an empty local folder for what it writes."""

    @property
    def id(self) -> int: ...
    @property
    def files(self) -> Mapping[str, str]: ...
    @property
    def out(self) -> Path: ...


class StepWorker(Protocol):
    """Does the tasks of a step. A class whose constructor takes the step's arguments: data, dataclasses, configs."""

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes the task's files and returns its counters."""


class Runner(Protocol):
    """Runs steps, each once all its tasks' inputs exist."""

    def run(
        self, name: str, worker: type[StepWorker], arguments: Mapping[str, Any], tasks: Sequence[StepTask]
    ) -> list[TaskResult]:
        """Runs ``worker(**arguments)`` over all tasks; returns their results in the order of the tasks.

        ``name`` is unique in a selection: a step that was interrupted goes on under its name.
        """


@dataclass(frozen=True)
class LocalTask:
    """An `OpenTask` in this process."""

    id: int
    files: Mapping[str, str]
    out: Path


@dataclass(frozen=True)
class LocalRunner:
    """Runs steps in this process, below the local ``folder``."""

    folder: Path

    def run(
        self, name: str, worker: type[StepWorker], arguments: Mapping[str, Any], tasks: Sequence[StepTask]
    ) -> list[TaskResult]:
        """Runs the tasks one after the other, as `Runner.run` says."""
        work, results = worker(**arguments), list[TaskResult]()
        for task in tasks:
            out = self.folder / name / str(task.id)
            out.mkdir(parents=True)
            counters = work(LocalTask(task.id, task.files, out))
            results.append(TaskResult(task.id, list_outputs(str(path) for path in out.iterdir()), counters))
        return results


def place_output(task: OpenTask, name: str) -> Path:
    """Returns where a task writes a file; tasks of a step may share a folder in the end."""
    return task.out / f"{task.id}-{name}"


def list_outputs(paths: Iterable[str]) -> dict[str, str]:
    """Returns what a task wrote by the names that `place_output` was given; other files by their own names."""
    found = {}
    for path in paths:
        own = path.rpartition("/")[2]
        found[own.partition("-")[2] or own] = path
    return found


def collect_parts(results: Sequence[TaskResult], count: int) -> Parts:
    """Returns the parts that the tasks of a step wrote."""
    records = sum(result.counters[RECORDS] for result in results)
    return Parts(tuple(result.files[PARTS_FILE] for result in results), count, records)


def write_parts(
    task: OpenTask, dealt: Iterable[tuple[np.ndarray, np.ndarray]], dtype: np.dtype, count: int
) -> dict[str, int]:
    """Writes records, each with its part, as what a task exchanges; returns the counters."""
    with PartWriter(place_output(task, PARTS_FILE), dtype, count) as writer:
        for record_N, number_N in dealt:
            writer.add(record_N, number_N)
    return {RECORDS: writer.records}
