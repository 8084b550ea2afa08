"""Steps in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataprep.filters.exchange import VERDICT
from dataprep.filters.steps import (
    PARTS_FILE,
    RECORDS,
    LocalRunner,
    LocalTask,
    OpenTask,
    StepTask,
    collect_parts,
    list_outputs,
    place_output,
    write_parts,
)


class Deal:
    """Worker: as many records as its number, to the part of its number."""

    def __init__(self, parts: int) -> None:
        self.parts = parts

    def __call__(self, task: OpenTask) -> dict[str, int]:
        record_N = np.zeros(task.id, VERDICT)
        return write_parts(task, [(record_N, np.full(task.id, task.id))], VERDICT, self.parts) | {"tasks": 1}


def test_tasks_keep_their_order_and_their_files(tmp_path: Path) -> None:
    results = LocalRunner(tmp_path).run("deal", Deal, {"parts": 4}, [StepTask(3), StepTask(1)])
    assert [result.id for result in results] == [3, 1]
    assert results[0].counters == {RECORDS: 3, "tasks": 1} and set(results[0].files) == {PARTS_FILE}
    parts = collect_parts(results, 4)
    assert (parts.count, parts.records) == (4, 4)
    assert [len(parts.read(number, VERDICT)) for number in range(4)] == [0, 1, 0, 3]


def test_tasks_name_their_files_apart(tmp_path: Path) -> None:
    places = [place_output(LocalTask(number, {}, tmp_path), "codes.bin") for number in (1, 12)]
    assert len(set(places)) == 2
    assert all(list_outputs([str(place)]) == {"codes.bin": str(place)} for place in places)
    assert list_outputs(["s3://bucket/run-1/00003.parquet"]) == {"00003.parquet": "s3://bucket/run-1/00003.parquet"}
