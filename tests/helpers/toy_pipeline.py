"""A small pipeline of real stages: ``rows`` -> ``first`` -> ``left`` and ``right`` -> ``whole``.

``rows`` writes text files in the driver, ``first`` reads them shard by shard, ``left`` and ``right`` read what
``first`` wrote, and ``whole`` needs all of both. Every start and end of a shard is a line of a file.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import cloudpickle

from dataprep.io import storage
from dataprep.io.keys import shard_name
from pipeline.execution import executor
from pipeline.execution.plan import FingerprintParts, PlannedStage
from pipeline.execution.record import RunRecord
from pipeline.runtime.admission import ClusterShares
from pipeline.runtime.config import ClusterConfig
from pipeline.runtime.context import Context
from pipeline.runtime.shard_stream import StageStreams
from pipeline.runtime.shard_worker import ShardTask
from pipeline.stages.base import Placement, Stage, StageConfig, StageInputs, StageType
from pipeline.store.artifact import Artifact, Shard, describe_file
from pipeline.store.markers import Marker
from pipeline.store.run import Run

# Ray's workers cannot import test modules: their classes are pickled by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
MAPPED = ("first", "left", "right")
STAGES = ("rows", *MAPPED, "whole")


class AppendWord:
    """Writes its input and a word; at the shards that ``orders.json`` names, fails always, or dies at the first try.

    That file is beside the run and no argument, so that a shard's fingerprint is the same whatever it says.
    """

    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, task: ShardTask) -> dict[str, int]:
        (file,) = task.files.values()
        folder = Path(file).parents[4]
        orders = json.loads((folder / "orders.json").read_text())[self.word]

        def note(what: str) -> None:
            with open(folder / "notes", "a", encoding="utf-8") as notes:
                notes.write(f"{self.word} {task.id} {what} {time.time()}\n")

        note("start")
        time.sleep(orders["seconds"])
        died = folder / f"{self.word}.{task.id}"
        if task.id in orders["dies"] and not died.exists():
            died.touch()
            if threading.current_thread() is threading.main_thread():
                os._exit(1)
            sys.exit(1)  # of `thread_workers`
        if task.id in orders["fails"]:
            raise ValueError("cannot be read")
        text = f"{Path(file).read_text()} {self.word}"
        (task.out / shard_name(task.id, "txt")).write_text(text)
        note("end")
        return {"rows": 1, "letters": len(text)}


@dataclass(frozen=True, kw_only=True)
class FirstInputs(StageInputs):
    rows: Artifact


@dataclass(frozen=True, kw_only=True)
class SideInputs(StageInputs):
    first: Artifact


@dataclass(frozen=True, kw_only=True)
class WholeInputs(StageInputs):
    left: Artifact
    right: Artifact


@dataclass
class Toy:
    """Settings of the pipeline in ``folder``; the rest is by stage."""

    folder: Path
    shards: int = 8
    stream: bool = True
    lag: int = 4
    workers: int = 1
    seconds: dict[str, float] = field(default_factory=dict)  # per shard
    fails: Mapping[str, Sequence[int]] = field(default_factory=dict)
    dies: Mapping[str, Sequence[int]] = field(default_factory=dict)
    quarantine: int = 0

    def run(self) -> dict[str, Artifact]:
        """Runs the stages that are not finished; returns all artifacts."""
        run, stages = Run(str(self.folder / "run")), {name: {"max_actors": self.workers} for name in MAPPED}
        cluster = ClusterConfig.model_validate(
            {"cpus": 2, "stream": self.stream, "stream_lag": self.lag, "retries": 1, "stages": stages}
            | {"max_quarantined": self.quarantine}
        )
        self.folder.mkdir(exist_ok=True)
        orders = {
            name: {
                "seconds": self.seconds.get(name, 0.0),
                "fails": self.fails.get(name, ()),
                "dies": self.dies.get(name, ()),
            }
            for name in MAPPED
        }
        (self.folder / "orders.json").write_text(json.dumps(orders))
        config: Any = SimpleNamespace(cluster=cluster)
        record = RunRecord(run, {"stages": {name: {"state": "pending"} for name in STAGES}})

        def run_stage(
            item: PlannedStage, done: dict[str, Artifact], shares: ClusterShares, streams: StageStreams
        ) -> Artifact:
            return executor._run_stage(item, done, shares, streams, config, run, record)

        return executor._run_stages([self._plan(run, stage) for stage in self._list_stages()], run_stage, cluster)

    def states(self) -> dict[str, str]:
        """Returns the state of every stage in run.json."""
        return {name: entry["state"] for name, entry in Run(str(self.folder / "run")).record()["stages"].items()}

    def read_notes(self) -> list[tuple[str, int, str, float]]:
        """Returns (stage, shard, "start" or "end", time) in order of time."""
        path = self.folder / "notes"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return sorted(((s, int(n), what, float(at)) for s, n, what, at in lines), key=lambda note: note[3])

    def _plan(self, run: Run, stage: Stage) -> PlannedStage:
        fingerprint = stage.name.ljust(20, "0")
        parts = FingerprintParts(stage.name, {}, {name: name.ljust(20, "0") for name in stage.inputs}, {}, {}, {})
        return PlannedStage(stage, fingerprint, parts, run.artifact(stage.name, fingerprint), "")

    def _list_stages(self) -> list[Stage]:
        def write_rows(ctx: Context[Any, Any]) -> None:
            for number in range(self.shards):
                time.sleep(self.seconds.get("rows", 0.0))
                name = shard_name(number, "txt")
                storage.write_bytes(ctx.path(name), f"row {number}".encode())
                output = describe_file(ctx.folder, name)
                ctx.offer_shard(Shard.from_marker(ctx.folder, Marker(number, "", {}, [output], {})))

        def write_whole(ctx: Context[Any, Any]) -> None:
            parts = [Path(path).read_text() for one in (ctx.inputs.left, ctx.inputs.right) for path in one.files("txt")]
            storage.write_bytes(ctx.path("whole.txt"), "\n".join(parts).encode())

        def append(name: str) -> Any:
            def run(ctx: Context[Any, Any]) -> None:
                ctx.map_shards(AppendWord, {"word": name}, ctx.feed_shards(next(iter(vars(ctx.inputs).values()))))

            return run

        driver, shards = Placement.DRIVER, Placement.SHARDS
        return [
            make_stage("rows", write_rows, StageInputs, driver),
            make_stage("first", append("first"), FirstInputs, shards, ("rows",)),
            make_stage("left", append("left"), SideInputs, shards, ("first",)),
            make_stage("right", append("right"), SideInputs, shards, ("first",)),
            make_stage("whole", write_whole, WholeInputs, driver),
        ]


def make_stage(
    name: str, run: Any, inputs: type[StageInputs], placement: Placement, streams: tuple[str, ...] = ()
) -> Stage:
    kind = StageType(name=name, run=run, config=StageConfig, inputs=inputs, streams=streams)
    names = inputs.names({}, lambda optional: True)
    return Stage(name, kind, StageConfig(), names, None, placement)


def describe(artifacts: dict[str, Artifact]) -> dict[str, dict[str, Any]]:
    """Returns the manifests without what depends on clocks."""
    found = {name: asdict(artifact.manifest) for name, artifact in artifacts.items()}
    return {name: {key: value for key, value in one.items() if key != "seconds"} for name, one in found.items()}
