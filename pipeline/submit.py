"""Runs the pipeline as a Ray job: the working tree is packaged and submitted, and the job's log followed.

A run has one job at a time. Its name derives from the run, so two who submit at once ask for the same name and Ray
gives it to one; the other attaches. What Ray's own command submits is found by what its driver wrote into run.json. Two
clusters know nothing of each other: there the lease in the run's storage keeps the second driver out.
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

from dataprep.schema import UserError
from pipeline.config import load_config
from pipeline.fingerprint import digest
from pipeline.jobs import RUN_KEY, ask, dashboard, describe_job, driving_job, follow_job, job_by_id, jobs_of, stop_hint
from pipeline.progress import console
from pipeline.store import Run


def submit_job(config: str, overrides: Sequence[str], address: str | None, wait: bool) -> int:
    """Submits ``imagen-ray run CONFIG``, or attaches to the job that is at it, and returns the job's exit status.

    The config is checked here first. A relative run folder is taken from this machine's working folder, since a job's
    own working folder is thrown away with it.

    Raises:
        UserError: a wrong config, no cluster at the address, no right token, or a job with other arguments is at work.
        StageError: the cluster went away while the job ran.
    """
    address = dashboard(address)
    loaded = load_config(config, overrides)
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").exists():
        raise UserError(f"{root}: not a checkout of imagen-ray; a job is made of one, so submit from there")
    try:
        inside = Path(config).resolve().relative_to(root)
    except ValueError as error:
        raise UserError(f"CONFIG={config}: must be inside {root}, the folder that the job is made of") from error
    run = Run(loaded.run)
    words = ["python", "-m", "pipeline", "run", str(inside), *overrides]
    if run.root != loaded.run:
        words.append(f"run={run.root}")
    client = ask(address, lambda: JobSubmissionClient(address))
    job = ask(address, lambda: _attach_or_submit(client, address, run, shlex.join(words), root))
    if not wait:
        print(job)
        return 0
    try:
        return follow_job(client, address, job)
    except KeyboardInterrupt:
        console.print(f"job {job} goes on; submit again to follow it, end it with `{stop_hint(job, address)}`")
        return 130


def _attach_or_submit(client: JobSubmissionClient, address: str, run: Run, entrypoint: str, root: Path) -> str:
    before = jobs_of(client, run.root)
    if running := _running(client, before, run):
        return _attach(running, address, run, entrypoint)
    stem = f"{re.sub('[^a-zA-Z0-9]+', '-', run.root.rpartition('/')[2])}-{digest(run.root)[:8]}-"
    numbers = [re.fullmatch(rf"{re.escape(stem)}(\d+)", str(job.submission_id)) for job in before]
    name = f"{stem}{max((int(number[1]) for number in numbers if number), default=0) + 1}"
    logging.getLogger("ray").setLevel(logging.ERROR)  # a line for every file that is packaged
    environment = {"working_dir": str(root)}  # .gitignore and .rayignore say what stays here
    try:
        for attempt in _patiently():
            with attempt:
                client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=name,
                    runtime_env=environment,
                    metadata={RUN_KEY: run.root},
                )
    except RuntimeError:
        first = job_by_id(client, name)
        if first and not first.status.is_terminal():  # another submission of this run came first by a moment
            return _attach(first, address, run, entrypoint)
        raise
    console.print(f"job {name} on {address}, run folder {run.root}")
    return name


def _running(client: JobSubmissionClient, jobs: Sequence[JobDetails], run: Run) -> JobDetails | None:
    """The job that works on ``run`` now: one that was submitted for it, else the one that run.json names."""
    candidates = list(jobs)
    try:
        candidates += [job for job in [driving_job(client, run)] if job]
    except Exception as error:  # whatever a storage library raises for credentials that only the cluster has
        told = " ".join(str(error).split())[:160]
        console.print(f"[dim]{run.root} cannot be read from here ({type(error).__name__}: {escape(told)})[/]")
    return next((job for job in candidates if not job.status.is_terminal()), None)


def _attach(job: JobDetails, address: str, run: Run, entrypoint: str) -> str:
    name = str(job.submission_id)
    if (job.metadata or {}).get(RUN_KEY) == run.root and job.entrypoint != entrypoint:
        raise UserError(
            f"run={run.root}: job {name} is at work there with other arguments (`{job.entrypoint}`); wait for it, or "
            f"end it with `{stop_hint(name, address)}`"
        )
    console.print(f"attached to {describe_job(job, address)}, with the code of that time")
    return name


def _patiently() -> Retrying:
    """A cluster that was only just started answers before it can take a job: try again for half a minute."""
    starting = retry_if_exception(lambda error: "No available agent" in str(error))
    return Retrying(retry=starting, wait=wait_fixed(1), stop=stop_after_delay(30), reraise=True)
