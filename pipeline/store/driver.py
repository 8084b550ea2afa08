"""The identity of this process: the driver of a run, possibly the entry point of a Ray job."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

JOB_SETTINGS = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in a job's entry point


def describe_driver() -> dict[str, Any]:
    """Returns host, process id, machine identity and Ray job of this process, for run.json and leases."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": machine_identity(), "job": ray_job_id()}


def machine_identity() -> str | None:
    """Returns boot id and PID namespace, within which process ids are comparable; None if the system has neither."""
    boot, pids = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return f"{boot.read_text().strip()} {pids.readlink()}" if boot.exists() and pids.is_symlink() else None


def is_ray_job() -> bool:
    """Returns whether this process is the entry point of a Ray job."""
    return JOB_SETTINGS in os.environ


def ray_job_id() -> str | None:
    """Returns the submission id of this process's Ray job; None outside a job."""
    settings = json.loads(os.environ.get(JOB_SETTINGS, "{}"))
    found = settings.get("metadata", {}).get("job_submission_id")
    return str(found) if found else None
