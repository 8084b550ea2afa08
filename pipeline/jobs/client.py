"""Reads the jobs of a Ray cluster: finds the jobs of a run, follows a log across interruptions, reports the status."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from dataprep.io.errors import UserError
from pipeline.runtime.errors import StageError
from pipeline.store.run import Run
from pipeline.terminal import console

RUN_KEY = "imagen-ray-run"  # key of a job's metadata: the run that it works on
ABSENCE_LIMIT = 120.0  # seconds that the head may be away, to restart say, before following fails
# Seconds between two looks at whether a job has ended, and for how long they are short: a finished run ends at once.
POLL_SOON, POLL_LATER, POLL_SOON_FOR = 0.25, 5.0, 60.0
TOKEN_HELP = (
    "the cluster requires a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the token "
    "that the cluster was started with; `ray get-auth-token` shows it on the head"
)
Answer = TypeVar("Answer")


def resolve_address(address: str | None) -> str:
    """Returns the URL of the dashboard: as given, else RAY_API_SERVER_ADDRESS, else the one on this machine."""
    return address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"


def query_cluster(address: str, query: Callable[[], Answer]) -> Answer:
    """Returns ``query()``, which talks to the cluster at ``address``.

    Raises:
        UserError: no cluster answers there, or it requires another token.
    """
    try:
        return query()
    except AuthenticationError as error:
        raise UserError(f"--address {address}: {TOKEN_HELP}") from error
    except (ConnectionError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"--address {address}: no Ray dashboard answers ({text[:160]}); start one with `ray start --head`"
        ) from error


def list_jobs(client: JobSubmissionClient, root: str) -> list[JobDetails]:
    """Returns the jobs that were submitted for the run at ``root``, oldest first."""
    found = [job for job in client.list_jobs() if (job.metadata or {}).get(RUN_KEY) == root]
    return sorted(found, key=lambda job: job.start_time or 0)


def find_job_by_id(client: JobSubmissionClient, job: str) -> JobDetails | None:
    """Returns the job with this submission id, whoever submitted it; None if the cluster has none."""
    return next((found for found in client.list_jobs() if found.submission_id == job), None)


def find_driving_job(client: JobSubmissionClient, run: Run) -> JobDetails | None:
    """Returns the job that run.json names as the driver, including one submitted with Ray's own command."""
    job = (run.read_record() or {}).get("driver", {}).get("job")
    return find_job_by_id(client, job) if job else None


def find_job(client: JobSubmissionClient, target: str) -> JobDetails | None:
    """Returns the job named ``target``, or the newest job of the run ``target``; None if there is neither."""
    if found := find_job_by_id(client, target):
        return found
    run = Run(target)
    jobs = list_jobs(client, run.root)
    return jobs[-1] if jobs else find_driving_job(client, run)


def show_log(target: str, address: str | None, follow: bool) -> int:
    """Prints a job's log, until the job ends if ``follow``; returns the job's exit status, 0 while it runs.

    Args:
        target: a run folder, or a job's submission id.
    """
    address = resolve_address(address)
    client = query_cluster(address, lambda: JobSubmissionClient(address))
    job = query_cluster(address, lambda: find_job(client, target))
    if job is None:
        raise UserError(
            f"{target}: the cluster at {address} has no job of this name and none for this run; "
            "`ray job list` shows its jobs"
        )
    if follow:
        return follow_job(client, address, str(job.submission_id))
    print(client.get_job_logs(str(job.submission_id)), end="")
    return exit_status(job)


def describe_job(job: JobDetails, address: str) -> str:
    """Returns a line with a job's state."""
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((job.start_time or 0) / 1000))
    message = f": {' '.join(job.message.split())[:200]}" if job.status == JobStatus.FAILED and job.message else ""
    return f"job {job.submission_id} on {address}: {job.status.value.lower()}, started {started}{message}"


def follow_job(client: JobSubmissionClient, address: str, job: str) -> int:
    """Prints the log of ``job`` until it ends and returns its exit status. The job outlives this process.

    Waits for a broken connection or a restarting head to return, and prints nothing twice.

    Raises:
        StageError: the cluster did not return within `ABSENCE_LIMIT` seconds, or returned without the job.
    """
    log, away_since = _JobLog(client, job), None
    while True:
        try:
            asyncio.run(_tail_until_end(log, client, job))
            info = find_job_by_id(client, job)
            away_since = None
        except (ConnectionError, RuntimeError, aiohttp.ClientError, OSError) as error:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > ABSENCE_LIMIT:
                reason = " ".join(str(error).split())
                raise StageError(
                    f"the cluster at {address} has not answered for {ABSENCE_LIMIT:.0f} s ({reason}); "
                    "finished work is in the run: submit it again to resume"
                ) from error
        else:
            if info is None:
                raise StageError(
                    f"the cluster at {address} no longer has job {job}, so its head was restarted; finished work is in "
                    "the run: submit it again to resume"
                )
            if info.status.is_terminal():
                console.print(f"job {job}: {info.status.value.lower()}")
                return exit_status(info)
        time.sleep(1)


async def _tail_until_end(log: _JobLog, client: JobSubmissionClient, job: str) -> None:
    """Prints the log until it ends or the job has, which Ray's own connection tells up to four seconds later."""
    tail, began = asyncio.create_task(log.tail()), time.monotonic()
    try:
        while not tail.done():
            await asyncio.wait({tail}, timeout=POLL_LATER if time.monotonic() - began > POLL_SOON_FOR else POLL_SOON)
            if tail.done():
                break
            info = await asyncio.to_thread(find_job_by_id, client, job)
            if info is None or info.status.is_terminal():
                break
        if tail.done():
            tail.result()
        else:
            await asyncio.to_thread(log.print_rest)
    finally:
        tail.cancel()
        await asyncio.gather(tail, return_exceptions=True)


class _JobLog:
    """Prints a job's log, each character once, although every new connection reads it from the start."""

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self.client, self.job, self.shown = client, job, 0

    def print_rest(self) -> None:
        """Prints what is in the log by now."""
        text = self.client.get_job_logs(self.job)
        print(text[self.shown :], end="", flush=True)
        self.shown = max(self.shown, len(text))

    async def tail(self) -> None:
        """Prints until the log ends or the connection breaks."""
        seen = 0
        async for text in self.client.tail_job_logs(self.job):
            print(text[max(0, self.shown - seen) :], end="", flush=True)
            seen += len(text)
            self.shown = max(self.shown, seen)


def exit_status(job: JobDetails) -> int:
    """Returns the exit status of the job's command; 1 if a signal, Ray or a user ended it, 0 while it runs."""
    if job.status in (JobStatus.FAILED, JobStatus.STOPPED):
        return max(job.driver_exit_code or 1, 1)
    return 0


def stop_command(job: Any, address: str) -> str:
    """Returns the command that stops a job."""
    return f"ray job stop {job} --address {address}"
