"""The rows that are left in a selection: which filter dropped each row so far, and steps over the others.

A group of shards has a state of two files of parts, one part a shard: the number of the filter that dropped each row
(uint8; 0: none), and the dropped rows that repeat another (`exchange.VERDICT`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dataprep.filters.exchange import NONE, VERDICT, Parts, PartWriter
from dataprep.filters.pair_shards import SHARD_ROWS, Groups, PairShard, open_shards
from dataprep.filters.steps import (
    OpenTask,
    Runner,
    StepTask,
    StepWorker,
    TaskResult,
    collect_parts,
    place_output,
    write_parts,
)

if TYPE_CHECKING:
    import pyarrow as pa

CODE = np.dtype(np.uint8)
CODES, ORIGINALS = "codes.bin", "originals.bin"  # the state of a group


@dataclass(frozen=True)
class Verdicts:
    """The rows that a filter drops, as parts by group; ``own``: each file is one group's own, in one part."""

    parts: Parts
    own: bool = False

    @property
    def dropped(self) -> int:
        """How many rows."""
        return self.parts.records


@dataclass(frozen=True)
class LeftRows:
    """The rows that a filter decides on. ``state`` has a group each, ``count`` is the number of rows that are left.

    Steps are named after the filter, ``name``.
    """

    runner: Runner
    shards: Sequence[Sequence[PairShard]]  # by group
    groups: Groups
    state: Sequence[TaskResult]
    count: int
    name: str

    def emit(self, step: str, worker: type[StepWorker], arguments: Mapping[str, Any], columns: Sequence[str]) -> Parts:
        """Runs a worker that exchanges records over all groups; it finds the rows by `iterate_left`.

        ``arguments`` has ``parts``, the number of parts.
        """
        results = self.run_groups(step, worker, arguments, columns)
        return collect_parts(results, arguments["parts"])

    def run_groups(
        self, step: str, worker: type[StepWorker], arguments: Mapping[str, Any], columns: Sequence[str]
    ) -> list[TaskResult]:
        """Runs a worker over all groups, with the files that have ``columns``; none: with the state alone."""
        tasks = []
        for number, (shards, state) in enumerate(zip(self.shards, self.state, strict=True)):
            files = {name: state.files[name] for name in (CODES, ORIGINALS)}
            for shard in shards if columns else ():
                files |= shard.list_files(columns)
            tasks.append(StepTask(number, files))
        return self.runner.run(f"{self.name}-{step}", worker, arguments, tasks)

    def run_tasks(
        self, step: str, worker: type[StepWorker], arguments: Mapping[str, Any], tasks: int
    ) -> list[TaskResult]:
        """Runs a worker over ``tasks`` parts of earlier steps."""
        return self.runner.run(f"{self.name}-{step}", worker, arguments, [StepTask(number) for number in range(tasks)])

    def exchange(
        self, step: str, worker: type[StepWorker], arguments: Mapping[str, Any], tasks: int, count: int
    ) -> Parts:
        """Runs a worker over ``tasks`` parts of earlier steps that exchanges records in ``count`` parts."""
        return collect_parts(self.run_tasks(step, worker, arguments, tasks), count)

    def decide(self, step: str, worker: type[StepWorker], arguments: Mapping[str, Any], tasks: int) -> Verdicts:
        """Runs a worker over ``tasks`` parts that writes its verdicts by `write_verdicts`."""
        arguments = {**arguments, "groups": self.groups}
        return Verdicts(self.exchange(step, worker, arguments, tasks, len(self.groups.starts)))


def iterate_left(task: OpenTask, columns: Sequence[str]) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Yields the positions and ``columns`` of the rows of a group that are left, shard by shard."""
    files = {name: path for name, path in task.files.items() if name not in (CODES, ORIGINALS)}
    shards = list(open_shards(files))
    for shard in shards:
        code_N = _read_shard(task.files[CODES], shard.id - shards[0].id, CODE)
        row_M = np.flatnonzero(code_N == 0)
        if len(row_M):
            rows = shard.read_columns(columns)
            yield row_M + shard.id * SHARD_ROWS, rows if len(row_M) == len(code_N) else rows.take(row_M)


def write_verdicts(task: OpenTask, groups: Groups, position_N: np.ndarray, original_N: np.ndarray) -> dict[str, int]:
    """Writes dropped rows and the rows that they repeat as parts by group; returns the counters."""
    verdict_N = np.empty(len(position_N), VERDICT)
    verdict_N["position"], verdict_N["original"] = position_N, original_N
    return write_parts(task, [(verdict_N, groups.find(position_N))], VERDICT, len(groups.starts))


def write_state(task: OpenTask, shards: int, rows: Iterable[tuple[int, np.ndarray, np.ndarray]]) -> None:
    """Writes the state of a group of shard numbers in a range of ``shards``, from (place, codes, originals) of each."""
    codes_path, same_path = place_output(task, CODES), place_output(task, ORIGINALS)
    with PartWriter(codes_path, CODE, shards) as codes, PartWriter(same_path, VERDICT, shards) as same:
        for place, code_N, original_K in rows:
            codes.add(code_N, np.full(len(code_N), place))
            same.add(original_K, np.full(len(original_K), place))


def read_shard_state(codes: str, originals: str, place: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the codes of a shard's rows, and its rows that repeat others, from the files of its group's state."""
    return _read_shard(codes, place, CODE), _read_shard(originals, place, VERDICT)


class ApplyVerdicts:
    """Worker: writes a group's state after a filter. ``code`` is the filter's number, from 1."""

    def __init__(self, code: int, verdicts: Verdicts, groups: Groups) -> None:
        self.code, self.verdicts, self.groups = code, verdicts, groups

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes the state; counts ``dropped``."""
        parts = self.verdicts.parts
        if self.verdicts.own:
            parts, number = Parts((parts.paths[task.id],), 1, 0), 0
        else:
            number = task.id
        verdict_K = parts.read(number, VERDICT)
        verdict_K = verdict_K[np.argsort(verdict_K["position"])]
        start, end = self.groups.starts[task.id], self.groups.ends[task.id]
        write_state(task, end - start, self._apply(task, verdict_K, range(start, end)))
        return {"dropped": len(verdict_K)}

    def _apply(
        self, task: OpenTask, verdict_K: np.ndarray, shards: range
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        bounds = np.searchsorted(verdict_K["position"], np.arange(shards.start, shards.stop + 1) * SHARD_ROWS)
        for place, shard in enumerate(shards):
            code_N, original_K = read_shard_state(task.files[CODES], task.files[ORIGINALS], place)
            own_K = verdict_K[bounds[place] : bounds[place + 1]]
            row_K = own_K["position"] - shard * SHARD_ROWS
            code_N = code_N.copy()
            assert not code_N[row_K].any(), f"a filter dropped rows of shard {shard} that were dropped before"
            code_N[row_K] = self.code
            yield place, code_N, np.concatenate([original_K, own_K[own_K["original"] != NONE]])


def _read_shard(path: str, place: int, dtype: np.dtype) -> np.ndarray:
    return Parts((path,), place + 1, 0).read(place, dtype)
