"""Runs the pipeline as a Ray job: the working tree is packaged and submitted, and the job's log followed."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from dataprep import storage
from dataprep.schema import UserError
from pipeline.config import load_config
from pipeline.progress import console

# What a job needs none of; a package is limited in size, and every node unpacks it.
EXCLUDES = [
    ".git",
    ".venv*",
    "runs",
    "tests",
    "benchmarks",
    "docs",
    "*.egg-info",
    "**/__pycache__",
    ".*_cache",
    ".hypothesis",
]
TOKEN_HELP = (
    "the cluster wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the token that "
    "the cluster was started with; `ray get-auth-token` shows it on the head"
)


def submit_job(config: str, overrides: Sequence[str], address: str | None, wait: bool) -> int:
    """Submits ``imagen-ray run CONFIG`` and returns the exit status: 0 where the job succeeded, else 1.

    The config is checked here first. A relative run folder is taken from this machine's working folder, since a job's
    own working folder is thrown away with it.

    Raises:
        UserError: a wrong config, no cluster at the address, or no right token.
    """
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    loaded = load_config(config, overrides)
    root = Path(__file__).resolve().parent.parent
    try:
        inside = Path(config).resolve().relative_to(root)
    except ValueError as error:
        raise UserError(f"CONFIG={config}: must be inside {root}, the folder that the job is made of") from error
    words = ["python", "-m", "pipeline", "run", str(inside), *overrides]
    if storage.is_local(loaded.run) and not Path(loaded.run).is_absolute():
        words.append(f"run={Path(loaded.run).resolve()}")
    client, job = _submit(address, shlex.join(words), {"working_dir": str(root), "excludes": EXCLUDES})
    console.print(f"job {job} on {address}, run folder {words[-1] if words[-1].startswith('run=') else loaded.run}")
    if not wait:
        print(job)
        return 0
    asyncio.run(_follow(client, job))
    info = client.get_job_info(job)
    console.print(f"job {job}: {info.status.value.lower()}")
    return 0 if info.status == JobStatus.SUCCEEDED else 1


def _submit(address: str, entrypoint: str, runtime_env: dict[str, Any]) -> tuple[JobSubmissionClient, str]:
    logging.getLogger("ray").setLevel(logging.ERROR)  # a line for every file that is packaged
    try:
        client = JobSubmissionClient(address)
        for attempt in _patiently():
            with attempt:
                job = client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)
        return client, job
    except AuthenticationError as error:
        raise UserError(f"--address {address}: {TOKEN_HELP}") from error
    except (ConnectionError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"--address {address}: no Ray dashboard to submit to ({text[:160]}); start one with `ray start --head`"
        ) from error


def _patiently() -> Retrying:
    """A cluster that was only just started answers before it can take a job: try again for half a minute."""
    starting = retry_if_exception(lambda error: "No available agent" in str(error))
    return Retrying(retry=starting, wait=wait_fixed(1), stop=stop_after_delay(30), reraise=True)


async def _follow(client: JobSubmissionClient, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)
