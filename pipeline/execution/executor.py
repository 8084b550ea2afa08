"""Runs a pipeline: every stage that has no finished artifact under its fingerprint."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.signals import handle_sigterm
from pipeline.execution.plan import PlannedStage, check_names, cut_plan, plan_run
from pipeline.execution.record import RunRecord
from pipeline.profile import span
from pipeline.runtime.context import Context
from pipeline.runtime.errors import InputFailedError, StageError
from pipeline.runtime.shard_stream import RunningArtifact, StageStreams
from pipeline.stages.base import Placement
from pipeline.stages.continued_training import begin_training, find_update_rule
from pipeline.store.artifact import MANIFEST, Artifact, Manifest, ShardRecord, describe_file, output_path
from pipeline.store.driver import is_ray_job
from pipeline.store.file_hashes import SourceHashes
from pipeline.store.lease import lock_run
from pipeline.store.markers import MARKERS, Marker, Output
from pipeline.store.run import EVENTS_FILE, Run, current_time
from pipeline.terminal import console

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.runtime.admission import ClusterShares
    from pipeline.runtime.config import ClusterConfig


def run_pipeline(config: RunConfig, command: str, until: str | None = None, keep: Sequence[str] = ()) -> Run:
    """Runs every unfinished stage up to ``until`` and returns the run.

    Raises:
        UserError: the config or an input is invalid; raised before Ray starts where possible.
        StageError: a stage failed; its finished shards or checkpoints are kept.
    """
    if is_ray_job() and storage.absolute(config.run) != config.run:
        raise UserError(
            f"run={config.run}: a job's working folder is deleted with the job; give an absolute path or a URL"
        )
    run = Run(config.run)
    before = _read_record(run)
    sources = SourceHashes(run)
    planned = plan_run(config, run, keep, sources)
    todo = cut_plan(planned, until)
    check_names("cluster.stages:", list(config.cluster.stages), ["train", *(item.stage.name for item in planned)])
    with lock_run(run), handle_sigterm(lambda: sys.exit(128 + signal.SIGTERM)):
        _check_writable(run)
        sources.save()
        if (current := run.read_record()) != before:  # another driver ran in the meantime
            planned = plan_run(config, run, keep, sources)
            todo = cut_plan(planned, until)
        record = RunRecord.start(run, config, command, planned, current)
        run.event("run_started", command=command, todo=[item.stage.name for item in todo if item.artifact is None])

        def run_stage(
            item: PlannedStage, done: dict[str, Artifact], shares: ClusterShares, streams: StageStreams
        ) -> Artifact:
            return _run_stage(item, done, shares, streams, config, run, record)

        try:
            artifacts = _run_stages(todo, run_stage, config.cluster)
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
            record.update(status="failed", error=text)
            run.event("run_failed", error=text)
            raise
        _copy_published(run, todo, artifacts)
        record.update(status="finished", finished=current_time())
        run.event("run_finished")
    return run


def _run_stages(
    todo: Sequence[PlannedStage],
    run_stage: Callable[[PlannedStage, dict[str, Artifact], ClusterShares, StageStreams], Artifact],
    cluster: ClusterConfig,
) -> dict[str, Artifact]:
    """Runs the stages that have no artifact; returns the artifacts of all. Imports Ray only if there are any."""
    waiting = [item for item in todo if item.artifact is None]
    if not waiting:
        return {item.stage.name: item.artifact for item in todo if item.artifact is not None}
    if any(item.stage.placement is not Placement.DRIVER for item in waiting):
        # In a thread, since importing Ray takes a second, and starting it several.
        threading.Thread(target=_prepare_ray, args=(cluster,), name="connect to Ray", daemon=True).start()
    from pipeline.execution.scheduler import Scheduler

    return Scheduler(todo, run_stage, cluster).run()


def _prepare_ray(cluster: ClusterConfig) -> None:
    """Connects to Ray while the driver works.

    An error is raised again where a stage needs Ray; here it would only end the thread with a traceback.
    """
    from pipeline.runtime.ray_session import connect_ray

    with suppress(Exception):  # Ray raises a plain one where it does not start in time
        connect_ray(cluster)


def _copy_published(run: Run, todo: Sequence[PlannedStage], artifacts: dict[str, Artifact]) -> None:
    """Copies each stage's published outputs into the run folder."""
    for item in todo:
        if (artifact := artifacts.get(item.stage.name)) is not None:
            for name in item.stage.type.published:
                storage.write_bytes(run.path(name), storage.read_bytes(artifact.path(name)))


def _run_stage(
    item: PlannedStage,
    done: dict[str, Artifact],
    shares: ClusterShares,
    streams: StageStreams,
    config: RunConfig,
    run: Run,
    record: RunRecord,
) -> Artifact:
    """Runs one stage, whose inputs are done or, if they are among ``streams``, running; commits its manifest."""
    name = item.stage.name
    run.event("stage_started", stage=name, fingerprint=item.fingerprint, reason=item.reason)
    record.update_stage(name, state="running")
    started = time.monotonic()
    running = {stage: RunningArtifact(stage, item.parts.inputs[stage]) for stage in streams.inputs}
    artifacts = {stage: running[stage] if stage in running else done[stage] for stage in item.stage.inputs}
    ctx: Context[Any, Any] = Context(
        stage=name,
        config=item.stage.config,
        inputs=item.stage.type.inputs.collect(artifacts),
        folder=run.stage_folder(name, item.fingerprint),
        run=run,
        cluster=config.cluster,
        artifacts=artifacts,
        trains=item.stage.placement is Placement.GROUP,
        shares=shares,
        sources=item.parts.sources,
        streams=streams,
    )
    try:
        with span(name):
            _begin_training(ctx, item)
            item.stage.type.run(ctx)
    except (UserError, KeyboardInterrupt):
        record.update_stage(name, state="failed")
        raise
    except InputFailedError:
        record.update_stage(name, state="pending")
        raise
    except Exception as error:
        record.update_stage(name, state="failed")
        run.event("stage_failed", stage=name, error=str(error))
        text = str(error) if isinstance(error, StageError) else f"{type(error).__name__}: {str(error).strip()}"
        raise StageError(f"stage {name} failed: {text}. Log: {run.path(EVENTS_FILE)}") from error
    finally:
        ctx.close_feeds()
        ctx.close_pools()
    seconds = round(time.monotonic() - started, 3)
    artifact = run.commit(_make_manifest(item, ctx, seconds))
    for subfolder in {"", *(marker.subfolder for marker in ctx.finished)}:
        storage.remove(storage.join(ctx.path(subfolder) if subfolder else ctx.folder, MARKERS))
    record.update_stage(name, state="done", seconds=seconds, finished=item.fingerprint)
    run.event("stage_finished", stage=name, seconds=seconds, counters=ctx.counters)
    counters = " ".join(f"{key}={value}" for key, value in ctx.counters.items())
    console.print(f"[green]done[/] {name:<12} {seconds:7.1f} s  {counters}")
    return artifact


def _begin_training(ctx: Context[Any, Any], item: PlannedStage) -> None:
    """Lets a training go on from an earlier artifact of its stage where that is the same training, and says so."""
    rule = find_update_rule(ctx.config, item.parts.beside_config(), ctx.artifacts)
    if rule is not None and (beginning := begin_training(ctx.run, ctx.stage, ctx.folder, rule)):
        console.print(f"{ctx.stage}: {beginning.describe()}", markup=False)


def _make_manifest(item: PlannedStage, ctx: Context[Any, Any], seconds: float) -> Manifest:
    outputs = _list_outputs(ctx.folder, ctx.finished)
    paths = {output.path for output in outputs}
    records = [ShardRecord.from_marker(marker) for marker in ctx.finished]
    return Manifest(
        stage=item.stage.name,
        fingerprint=item.fingerprint,
        inputs=item.parts.inputs,
        config=item.parts.config,
        outputs=outputs,
        counters=ctx.counters,
        seconds=seconds,
        versions=item.parts.versions,
        code=item.parts.code,
        sources=item.parts.sources,
        quarantined=ctx.quarantined,
        shards=[record for record in records if paths.issuperset(record.outputs)],
        kind=item.stage.type.kind,
        counter=item.stage.type.counter,
    )


def _list_outputs(folder: str, finished: Sequence[Marker]) -> list[Output]:
    """Returns every file of the artifact; reuses the hashes of shard files from their markers."""
    known = {output_path(marker.subfolder, output.path): output for marker in finished for output in marker.outputs}
    names = storage.list_settled(folder)
    own = [name for name in names if name != MANIFEST and MARKERS not in name.split("/")]
    return [replace(known[name], path=name) if name in known else describe_file(folder, name) for name in own]


def _read_record(run: Run) -> dict[str, Any] | None:
    """Returns run.json, or None; raises UserError for any error of the storage library."""
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
