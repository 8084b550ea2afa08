"""Runs the pipeline as a Ray job: packages the working tree, submits it, follows the job's log.

A run has one job at a time. Its name derives from the run: of two simultaneous submissions Ray accepts one, the other
attaches to it. A job submitted with Ray's own command is found through run.json. Two clusters do not know each other's
jobs: there the lease in the run's storage keeps the second driver out.
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from ray.job_submission import JobDetails, JobSubmissionClient
from rich.markup import escape
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from dataprep.io.errors import UserError
from pipeline.config_loading import load_config
from pipeline.jobs.client import (
    RUN_KEY,
    describe_job,
    find_driving_job,
    find_job_by_id,
    follow_job,
    list_jobs,
    query_cluster,
    resolve_address,
    stop_command,
)
from pipeline.store.fingerprint import hash_json
from pipeline.store.run import Run
from pipeline.terminal import console

NO_AGENT = "No available agent"  # of Ray's answer where no node can run a job, yet or at all
AGENT_TIMEOUT = 30.0  # seconds


def submit_job(config: str, overrides: Sequence[str], address: str | None, wait: bool) -> int:
    """Submits ``imagen-ray run CONFIG``, or attaches to the job that runs it, and returns the job's exit status.

    Validates the config first. A relative run folder is resolved against the current folder of this process, because
    a job's own working directory is deleted with it.

    Raises:
        UserError: invalid config, no cluster at the address, wrong token, or a running job with other arguments.
        StageError: the cluster disappeared while the job ran.
    """
    address = resolve_address(address)
    loaded = load_config(config, overrides)
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").exists():
        raise UserError(f"{root}: not a checkout of imagen-ray; a job packages a checkout, so submit from one")
    try:
        inside = Path(config).resolve().relative_to(root)
    except ValueError as error:
        raise UserError(f"CONFIG={config}: must be inside {root}, the folder that the job packages") from error
    run = Run(loaded.run)
    words = ["python", "-m", "pipeline", "run", str(inside), *overrides]
    if run.root != loaded.run:
        words.append(f"run={run.root}")
    client = query_cluster(address, lambda: JobSubmissionClient(address))
    job = query_cluster(address, lambda: _attach_or_submit(client, address, run, shlex.join(words), root))
    if not wait:
        print(job)
        return 0
    try:
        return follow_job(client, address, job)
    except KeyboardInterrupt:
        console.print(
            f"job {job} keeps running; submit again to follow it, stop it with `{stop_command(job, address)}`"
        )
        return 130


def _attach_or_submit(client: JobSubmissionClient, address: str, run: Run, entrypoint: str, root: Path) -> str:
    before = list_jobs(client, run.root)
    if running := _find_running(client, before, run):
        return _attach(running, address, run, entrypoint)
    stem = f"{re.sub('[^a-zA-Z0-9]+', '-', run.root.rpartition('/')[2])}-{hash_json(run.root)[:8]}-"
    numbers = [re.fullmatch(rf"{re.escape(stem)}(\d+)", str(job.submission_id)) for job in before]
    name = f"{stem}{max((int(number[1]) for number in numbers if number), default=0) + 1}"
    logging.getLogger("ray").setLevel(logging.ERROR)  # it logs a line per packaged file
    environment = {"working_dir": str(root)}  # without what .gitignore and .rayignore list
    try:
        for attempt in _retry_while_starting():
            with attempt:
                client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=name,
                    runtime_env=environment,
                    metadata={RUN_KEY: run.root},
                )
    except RuntimeError as error:
        if NO_AGENT in str(error):
            raise UserError(
                f"--address {address}: the cluster has no agent to run a job. Ray starts none on a node whose port "
                "52365 is taken, such as by another Ray on the same machine; start that node with `ray start "
                "--dashboard-agent-listen-port=PORT`, and a free port"
            ) from error
        first = find_job_by_id(client, name)
        if first and not first.status.is_terminal():  # another submission of this run was a moment earlier
            return _attach(first, address, run, entrypoint)
        raise
    console.print(f"job {name} on {address}, run folder {run.root}")
    return name


def _find_running(client: JobSubmissionClient, jobs: Sequence[JobDetails], run: Run) -> JobDetails | None:
    """Returns the job that works on ``run`` now: one submitted for it, else the one that run.json names."""
    candidates = list(jobs)
    try:
        candidates += [job for job in [find_driving_job(client, run)] if job]
    except Exception as error:  # any error of a storage library, for credentials that only the cluster has
        message = " ".join(str(error).split())[:160]
        console.print(f"[dim]{run.root} cannot be read from here ({type(error).__name__}: {escape(message)})[/]")
    return next((job for job in candidates if not job.status.is_terminal()), None)


def _attach(job: JobDetails, address: str, run: Run, entrypoint: str) -> str:
    name = str(job.submission_id)
    if (job.metadata or {}).get(RUN_KEY) == run.root and job.entrypoint != entrypoint:
        raise UserError(
            f"run={run.root}: job {name} already runs there with other arguments (`{job.entrypoint}`); wait for it, or "
            f"stop it with `{stop_command(name, address)}`"
        )
    console.print(f"attached to {describe_job(job, address)}, which runs the code it was submitted with")
    return name


def _retry_while_starting() -> Retrying:
    """Retries for half a minute: a cluster that was just started answers before it can run a job."""
    starting = retry_if_exception(lambda error: NO_AGENT in str(error))
    return Retrying(retry=starting, wait=wait_fixed(1), stop=stop_after_delay(AGENT_TIMEOUT), reraise=True)
