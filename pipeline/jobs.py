"""Jobs of a Ray cluster as seen from outside: finding a run's, following its log through interruptions, its status."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from dataprep.schema import UserError
from pipeline.context import StageError
from pipeline.progress import console
from pipeline.store import Run

RUN_KEY = "imagen-ray-run"  # of a job's metadata: the run that it works on
ABSENT = 120.0  # seconds that the head may be away, restarting say, before following its job is given up
TOKEN_HELP = (
    "the cluster wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the token that "
    "the cluster was started with; `ray get-auth-token` shows it on the head"
)
Answer = TypeVar("Answer")


def dashboard(address: str | None) -> str:
    """The address of the cluster's dashboard: as given, else RAY_API_SERVER_ADDRESS, else one on this machine."""
    return address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"


def ask(address: str, question: Callable[[], Answer]) -> Answer:
    """``question()``, asked of the cluster at ``address``.

    Raises:
        UserError: no cluster answers there, or it wants another token.
    """
    try:
        return question()
    except AuthenticationError as error:
        raise UserError(f"--address {address}: {TOKEN_HELP}") from error
    except (ConnectionError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"--address {address}: no Ray dashboard answers as it should ({text[:160]}); start one with "
            "`ray start --head`"
        ) from error


def jobs_of(client: JobSubmissionClient, root: str) -> list[JobDetails]:
    """The jobs that were submitted for the run at ``root``, oldest first."""
    found = [job for job in client.list_jobs() if (job.metadata or {}).get(RUN_KEY) == root]
    return sorted(found, key=lambda job: job.start_time or 0)


def job_by_id(client: JobSubmissionClient, job: str) -> JobDetails | None:
    """The job with that submission id, whoever submitted it; None where the cluster knows none."""
    return next((found for found in client.list_jobs() if found.submission_id == job), None)


def driving_job(client: JobSubmissionClient, run: Run) -> JobDetails | None:
    """The job that run.json names as the driver; also one that was submitted by Ray's own command."""
    job = (run.read_record() or {}).get("driver", {}).get("job")
    return job_by_id(client, job) if job else None


def find_job(client: JobSubmissionClient, target: str) -> JobDetails | None:
    """The job called ``target``, or the newest one that worked on the run ``target``."""
    if found := job_by_id(client, target):
        return found
    run = Run(target)
    jobs = jobs_of(client, run.root)
    return jobs[-1] if jobs else driving_job(client, run)


def show_log(target: str, address: str | None, follow: bool) -> int:
    """Prints a job's log, to its end where ``follow``; gives the job's exit status, 0 while it runs.

    Args:
        target: a run, or a job's submission id.
    """
    address = dashboard(address)
    client = ask(address, lambda: JobSubmissionClient(address))
    job = ask(address, lambda: find_job(client, target))
    if job is None:
        raise UserError(
            f"{target}: the cluster at {address} knows no job of that name nor one for that run; "
            "`ray job list` shows what it has"
        )
    if follow:
        return follow_job(client, address, str(job.submission_id))
    print(client.get_job_logs(str(job.submission_id)), end="")
    return exit_status(job)


def describe_job(job: JobDetails, address: str) -> str:
    """A line on where a job stands."""
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((job.start_time or 0) / 1000))
    told = f": {' '.join(job.message.split())[:200]}" if job.status == JobStatus.FAILED and job.message else ""
    return f"job {job.submission_id} on {address}: {job.status.value.lower()}, started {started}{told}"


def follow_job(client: JobSubmissionClient, address: str, job: str) -> int:
    """Prints the log of ``job`` until it ends and returns its exit status; it outlives this process.

    A connection that breaks, or a head that restarts, is waited for; what was printed is not printed again.

    Raises:
        StageError: the cluster stayed away, or came back without the job.
    """
    log, away = _Log(client, job), None
    while True:
        try:
            asyncio.run(log.tail())
            info = job_by_id(client, job)
            away = None
        except (ConnectionError, RuntimeError, aiohttp.ClientError, OSError) as error:
            away = away or time.monotonic()
            if time.monotonic() - away > ABSENT:
                raise StageError(
                    f"the cluster at {address} has not answered for {ABSENT:.0f} s ({' '.join(str(error).split())}); "
                    "what the job finished is in its run: submit it again to go on"
                ) from error
        else:
            if info is None:
                raise StageError(
                    f"the cluster at {address} does not know job {job} any more, so its head was started anew; what "
                    "the job finished is in its run: submit it again to go on"
                )
            if info.status.is_terminal():
                console.print(f"job {job}: {info.status.value.lower()}")
                return exit_status(info)
        time.sleep(1)


class _Log:
    """Prints a job's log, each character once, however often it is read from its start."""

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self.client, self.job, self.shown = client, job, 0

    async def tail(self) -> None:
        """Reads on until the log's end, or until the connection breaks."""
        seen = 0
        async for text in self.client.tail_job_logs(self.job):
            print(text[max(0, self.shown - seen) :], end="", flush=True)
            seen += len(text)
            self.shown = max(self.shown, seen)


def exit_status(job: JobDetails) -> int:
    """The status that the job's command ended with; 1 where a signal, Ray or a user ended it, 0 where it runs."""
    if job.status in (JobStatus.FAILED, JobStatus.STOPPED):
        return max(job.driver_exit_code or 1, 1)
    return 0


def stop_hint(job: Any, address: str) -> str:
    """How to end a job."""
    return f"ray job stop {job} --address {address}"
