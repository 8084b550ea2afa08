"""Runs the stage list: fingerprints first, then whatever has no finished artifact under its fingerprint."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dataprep import storage
from dataprep.schema import UserError
from pipeline.config import RunConfig, pick
from pipeline.context import Context, StageError
from pipeline.fingerprint import digest, reached
from pipeline.lease import driver, in_job, lock
from pipeline.progress import console
from pipeline.room import Room
from pipeline.schedule import Schedule
from pipeline.sources import SourceHashes
from pipeline.stages import Stage, Work, stages
from pipeline.store import MANIFEST, MARKERS, Artifact, Manifest, Marker, Output, Run, describe, now

FINGERPRINT_LENGTH = 20  # hex digits: 80 bits
KEPT_OVER = ("code changed", "versions changed")
# Copied to where people look.
PUBLISHED = {"card": ("datacard.md",), "report": ("report.html", "report.md", "metrics.json")}


@dataclass(frozen=True)
class Planned:
    """A stage with its fingerprint and, where it is finished, its artifact."""

    stage: Stage
    fingerprint: str
    parts: dict[str, Any]  # what the fingerprint is the digest of
    artifact: Artifact | None
    reason: str  # why it will run, in a few words; empty where it is finished


def plan(config: RunConfig, run: Run, keep: Sequence[str] = (), sources: SourceHashes | None = None) -> list[Planned]:
    """Every stage with its fingerprint; those in ``keep`` stand as they are over a change of code or libraries."""
    sources = sources or SourceHashes(run)
    everything = stages(config)
    _known("--keep", keep, [stage.name for stage in everything])
    planned: dict[str, Planned] = {}
    for stage in everything:
        planned[stage.name] = _plan_stage(stage, config, run, planned, sources, stage.name in keep)
    return list(planned.values())


def up_to(planned: list[Planned], until: str | None) -> list[Planned]:
    """The plan as far as the stage ``until``, or all of it."""
    names = [item.stage.name for item in planned]
    if until is None:
        return planned
    _known("--until", [until], names)
    return planned[: names.index(until) + 1]


def _known(option: str, given: Sequence[str], names: Sequence[str]) -> None:
    for name in given:
        if name not in names:
            raise UserError(f"{option} {name}: no such stage; the stages are {', '.join(names)}")


def _plan_stage(
    stage: Stage, config: RunConfig, run: Run, before: dict[str, Planned], sources: SourceHashes, keep: bool
) -> Planned:
    values = {key: pick(config, key) for key in stage.config}
    code, versions = reached(stage.function, list(_classes(values.values())))
    parts = {
        "stage": stage.name,
        "config": {key: _plain(value) for key, value in values.items()},
        "inputs": {name: before[name].fingerprint for name in stage.inputs},
        "sources": sources.of(stage.sources(config)) if stage.sources else {},
        "code": code,
        "versions": versions,
    }
    fingerprint = digest(parts)[:FINGERPRINT_LENGTH]
    artifact = run.artifact(stage.name, fingerprint)
    if artifact is not None:
        return Planned(stage, fingerprint, parts, artifact, "")
    previous = run.previous(stage.name)
    reason = _difference(previous, parts)
    if keep:
        if previous is None or not reason.startswith(KEPT_OVER):
            raise UserError(
                f"--keep {stage.name}: kept over a change of code or library versions alone, this is: {reason}"
            )
        kept = run.artifact(stage.name, previous.fingerprint)
        return Planned(stage, previous.fingerprint, parts, kept, f"kept over: {reason}")
    return Planned(stage, fingerprint, parts, None, reason)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _classes(values: Any) -> Iterator[type]:
    for value in values:
        if isinstance(value, BaseModel):
            yield type(value)


def _difference(before: Manifest | None, parts: dict[str, Any]) -> str:
    """What changed since ``before``: the first of config, inputs, code, versions that differs, by name."""
    if before is None:
        return "never run"
    for what, old, new in [
        ("config", before.config, parts["config"]),
        ("inputs", before.inputs, parts["inputs"]),
        ("source files", before.sources, parts["sources"]),
        ("code", before.code, parts["code"]),
        ("versions", before.versions, parts["versions"]),
    ]:
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if changed:
            more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
            return f"{what} changed: {', '.join(changed[:2])}{more}"
    return "it was finished under another scheme"


def execute(config: RunConfig, command: str, until: str | None = None, keep: Sequence[str] = ()) -> Run:
    """Runs every stage up to ``until`` that is not finished, and returns the run.

    Raises:
        UserError: the config or an input is wrong (before Ray starts wherever that can be known).
        StageError: a stage failed; what it finished is kept.
    """
    if in_job() and storage.absolute(config.run) != config.run:
        raise UserError(
            f"run={config.run}: a job's working folder is thrown away with it; give an absolute path or a URL"
        )
    run = Run(config.run)
    before = _first_look(run)
    sources = SourceHashes(run)
    planned = plan(config, run, keep, sources)
    todo = up_to(planned, until)
    _known("cluster.stages:", list(config.cluster.stages), ["train", *(item.stage.name for item in planned)])
    with lock(run):
        _check_writable(run)
        sources.save()
        if (stood := run.read_record()) != before:  # another driver was at work until the lock was free
            planned = plan(config, run, keep, sources)
            todo = up_to(planned, until)
        record = _record(config, command, planned, stood)
        _save(run, record)
        run.event("run_started", command=command, todo=[p.stage.name for p in todo if p.artifact is None])
        work = partial(_run_stage, config=config, run=run, record=record)
        try:
            artifacts = Schedule(todo, work, config.cluster).run()
        except BaseException as error:
            record["status"] = "failed"
            record["error"] = f"{type(error).__name__}: {error}"
            _save(run, record)
            run.event("run_failed", error=record["error"])
            raise
        for stage in PUBLISHED.keys() & artifacts.keys():
            for name in PUBLISHED[stage]:
                storage.write_bytes(run.path(name), storage.read_bytes(artifacts[stage].path(name)))
        record |= {"status": "finished", "finished": now()}
        _save(run, record)
        run.event("run_finished")
    return run


def _run_stage(
    item: Planned, done: dict[str, Artifact], room: Room, *, config: RunConfig, run: Run, record: dict[str, Any]
) -> Artifact:
    name = item.stage.name
    folder = run.stage_folder(name, item.fingerprint)
    run.event("stage_started", stage=name, fingerprint=item.fingerprint, reason=item.reason)
    _mark(run, record, name, state="running")
    started = time.monotonic()
    context = Context(
        stage=name,
        config={key: pick(config, key) for key in item.stage.config},
        inputs={stage: done[stage] for stage in item.stage.inputs},
        folder=folder,
        run=run,
        cluster=config.cluster,
        trains=item.stage.work is Work.GROUP,
        room=room,
        sources=item.parts["sources"],
    )
    try:
        item.stage.function(context)
    except (UserError, KeyboardInterrupt):
        _mark(run, record, name, state="failed")
        raise
    except Exception as error:
        _mark(run, record, name, state="failed")
        run.event("stage_failed", stage=name, error=str(error))
        text = str(error) if isinstance(error, StageError) else f"{type(error).__name__}: {str(error).strip()}"
        raise StageError(f"stage {name} failed: {text}. Log: {run.path('events.jsonl')}") from error
    seconds = round(time.monotonic() - started, 3)
    manifest = Manifest(
        stage=name,
        fingerprint=item.fingerprint,
        inputs=item.parts["inputs"],
        config=item.parts["config"],
        outputs=(outputs := _outputs(folder, context.finished)),
        counters=context.counters,
        seconds=seconds,
        versions=item.parts["versions"],
        code=item.parts["code"],
        sources=item.parts["sources"],
        quarantined=context.quarantined,
        shards=_kept(context.finished, outputs),
    )
    artifact = run.commit(manifest)
    for place in {folder, *(storage.join(folder, part.subfolder) for part in context.finished if part.subfolder)}:
        storage.remove(storage.join(place, MARKERS))
    _mark(run, record, name, state="done", seconds=seconds, finished=item.fingerprint)
    run.event("stage_finished", stage=name, seconds=seconds, counters=context.counters)
    counters = " ".join(f"{key}={value}" for key, value in context.counters.items())
    console.print(f"[green]done[/] {name:<12} {seconds:7.1f} s  {counters}")
    return artifact


def _outputs(folder: str, finished: Sequence[Marker]) -> list[Output]:
    """Every file of the artifact; those of shards were hashed as they were written, and are not read again."""
    known = {
        storage.join(marker.subfolder, output.path).lstrip("/"): output
        for marker in finished
        for output in marker.outputs
    }
    names = storage.list_settled(folder)
    own = [name for name in names if name != MANIFEST and MARKERS not in name.split("/")]
    return [replace(known[name], path=name) if name in known else describe(folder, name) for name in own]


def _kept(finished: Sequence[Marker], outputs: Sequence[Output]) -> list[Marker]:
    """The shards whose files are still there at the end of the stage."""
    names = {output.path for output in outputs}
    return [
        marker
        for marker in finished
        if all(storage.join(marker.subfolder, output.path).lstrip("/") in names for output in marker.outputs)
    ]


def _first_look(run: Run) -> dict[str, Any] | None:
    """run.json, or None; UserError with what the storage's library raises, each one errors of its own."""
    try:
        return run.read_record()
    except UserError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        remedy = "check the folder or bucket, and the credentials"
        raise UserError(f"run={run.root}: cannot be read ({text}); {remedy}") from error


def _check_writable(run: Run) -> None:
    probe = run.path(".writable")
    try:
        storage.write_bytes(probe, b"")
        storage.remove(probe)
    except OSError as error:
        raise UserError(f"run={run.root}: cannot be written ({error}); choose another folder") from error


def _record(config: RunConfig, command: str, planned: list[Planned], before: dict[str, Any] | None) -> dict[str, Any]:
    """The content of run.json at the start of a run; ``before`` is what stood there."""
    stood = (before or {}).get("stages", {})
    versions: dict[str, str] = {}
    entries = {}
    for item in planned:
        versions |= item.parts["versions"]
        state, seconds = ("done", item.artifact.manifest.seconds) if item.artifact else ("pending", None)
        finished = item.fingerprint if item.artifact else stood.get(item.stage.name, {}).get("finished")
        entry = {"fingerprint": item.fingerprint, "state": state, "seconds": seconds, "finished": finished}
        entries[item.stage.name] = entry
        if item.artifact and item.reason:
            entries[item.stage.name]["kept"] = item.reason
    return {
        "run": config.run,
        "status": "running",
        "started": now(),
        "finished": None,
        "command": command,
        "driver": driver(),
        "seed": config.seed,
        "git_commit": git_commit(),
        "versions": dict(sorted(versions.items())),
        "config": config.model_dump(mode="json"),
        "stages": entries,
    }


_RECORD = threading.RLock()  # stages run side by side


def _mark(run: Run, record: dict[str, Any], stage: str, **changes: Any) -> None:
    """Notes in run.json how a stage stands."""
    with _RECORD:
        record["stages"][stage] |= changes
        _save(run, record)


def _save(run: Run, record: dict[str, Any]) -> None:
    with _RECORD:
        storage.write_json(run.path("run.json"), record)


def git_commit() -> str | None:
    """The commit of the code that runs, with ``+changes`` where the tree differs from it; None outside of git."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
