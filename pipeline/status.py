"""Where a run stands, read from its folder alone."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table

from dataprep import storage
from pipeline.lease import is_driven
from pipeline.store import BATCH, MARKERS, Run


def describe_run(folder: str) -> Group:
    """A table of the run's stages: state, time, rows or progress. UserError where there is no run."""
    run = Run(folder)
    record = run.record()
    state = record["status"]
    if state == "running" and not is_driven(run):
        state = "interrupted (run it again to go on)"
    table = Table("stage", "state", "seconds", "files", "what", box=None)
    for stage, entry in record["stages"].items():
        artifact = run.artifact(stage, entry["fingerprint"])
        if artifact is not None:
            what = " ".join(f"{name}={count}" for name, count in artifact.manifest.counters.items())
            quarantined = len(artifact.manifest.quarantined)
            what += f" quarantined={quarantined}" if quarantined else ""
            table.add_row(stage, "done", f"{artifact.manifest.seconds:.1f}", str(len(artifact.manifest.outputs)), what)
        else:
            now = "running" if entry["state"] == "running" and state == "running" else "pending"
            if entry["state"] == "failed":
                now = "failed"
            table.add_row(stage, now, "", "", _progress(run, stage, entry["fingerprint"]))
    head = f"{run.root}: {state}, started {record['started']}, seed {record['seed']}"
    return Group(head, *([record["error"]] if record.get("error") else []), table)


def run_job(folder: str, address: str) -> str:
    """A line on the newest job of the run on the cluster at ``address``."""
    from ray.job_submission import JobSubmissionClient

    from pipeline.jobs import ask, describe_job, find_job

    client = ask(address, lambda: JobSubmissionClient(address))
    job = ask(address, lambda: find_job(client, folder))
    return describe_job(job, address) if job else f"no job of this run on {address}"


def _progress(run: Run, stage: str, fingerprint: str) -> str:
    """How far an unfinished stage is: its finished shards, or its last training step."""
    from pipeline.ray_train import last_row

    folder = run.stage_folder(stage, fingerprint)
    names = storage.list_files(storage.join(folder, MARKERS))
    if done := sum(not name.startswith(BATCH) for name in names):
        return f"{done} shards done"
    row = last_row(storage.join(folder, "log.jsonl"))
    return f"step {row['step']}, loss {row['loss']:.4f}" if row else ""
