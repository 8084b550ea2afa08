"""The progress of a run, read from its folder alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dataprep.io import storage
from dataprep.io.wording import count_of
from pipeline.store.lease import is_driven
from pipeline.store.log_tail import read_last_row
from pipeline.store.markers import BATCH_PREFIX, MARKERS
from pipeline.store.run import Run, current_time
from pipeline.store.wall_time import measure_wall
from pipeline.units import format_duration

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class StageStatus:
    """The state of one stage."""

    stage: str
    state: str  # done, running, failed or pending
    fingerprint: str
    seconds: float | None = None  # of a finished stage, as are the following
    files: int | None = None
    counters: dict[str, int] = field(default_factory=dict)
    quarantined: int = 0  # shards that were given up
    shards_done: int | None = None  # of an unfinished stage over shards
    step: int | None = None  # the last logged one of an unfinished training stage, as is the loss
    loss: float | None = None


@dataclass(frozen=True)
class RunStatus:
    """The state of a run."""

    run: str
    status: str  # finished, running, failed or interrupted (killed, not driven by anyone now)
    started: str  # UTC, ISO 8601
    seconds: float  # wall time of all commands that worked on it
    seed: int
    error: str | None
    stages: list[StageStatus]


def read_status(folder: str) -> RunStatus:
    """Returns the state of the run at ``folder``; raises UserError where there is no run."""
    run = Run(folder)
    record = run.record()
    status = record["status"]
    if status == "running" and not is_driven(run):
        status = "interrupted"
    stages = [
        _read_stage(run, stage, entry["fingerprint"], _unfinished_state(entry["state"], status))
        for stage, entry in record["stages"].items()
    ]
    seconds = measure_wall(run.events(), current_time() if status == "running" else None)
    return RunStatus(run.root, status, record["started"], seconds, record["seed"], record.get("error"), stages)


def _unfinished_state(recorded: str, status: str) -> str:
    if recorded == "failed":
        return "failed"
    return "running" if recorded == status == "running" else "pending"


def _read_stage(run: Run, stage: str, fingerprint: str, unfinished: str) -> StageStatus:
    if artifact := run.artifact(stage, fingerprint):
        manifest = artifact.manifest
        return StageStatus(
            stage,
            "done",
            fingerprint,
            seconds=manifest.seconds,
            files=len(manifest.outputs),
            counters=dict(manifest.counters),
            quarantined=len(manifest.quarantined),
        )
    folder = run.stage_folder(stage, fingerprint)
    markers = [name for name in storage.list_files(storage.join(folder, MARKERS)) if not name.startswith(BATCH_PREFIX)]
    row = {} if markers else read_last_row(storage.join(folder, "log.jsonl")) or {}
    return StageStatus(
        stage,
        unfinished,
        fingerprint,
        shards_done=len(markers) or None,
        step=row.get("step"),
        loss=row.get("loss"),
    )


def render_status(status: RunStatus) -> Group:
    """Returns the state as a heading and a table with a row per stage."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("stage", "state", "seconds", "files", "progress", box=None)
    for stage in status.stages:
        seconds = "" if stage.seconds is None else f"{stage.seconds:.1f}"
        files = "" if stage.files is None else str(stage.files)
        table.add_row(stage.stage, stage.state, seconds, files, _describe_progress(stage))
    state = f"{status.status} (run it again to resume)" if status.status == "interrupted" else status.status
    times = f"started {status.started}, wall time {format_duration(status.seconds)}"
    heading = Text(f"{status.run}: {state}, {times}, seed {status.seed}")
    return Group(heading, *([Text(status.error)] if status.error else []), table)


def _describe_progress(stage: StageStatus) -> str:
    if stage.shards_done is not None:
        return f"{count_of(stage.shards_done, 'shard')} done"
    if stage.step is not None:
        return f"step {stage.step}" + ("" if stage.loss is None else f", loss {stage.loss:.4f}")
    counters = [f"{name}={count}" for name, count in stage.counters.items()]
    return " ".join(counters + ([f"quarantined={stage.quarantined}"] if stage.quarantined else []))


def describe_newest_job(folder: str, address: str) -> str:
    """Returns a line on the newest job of the run on the cluster at ``address``."""
    from ray.job_submission import JobSubmissionClient

    from pipeline.jobs.client import describe_job, find_job, query_cluster

    client = query_cluster(address, lambda: JobSubmissionClient(address))
    job = query_cluster(address, lambda: find_job(client, folder))
    return describe_job(job, address) if job else f"no job of this run on {address}"
