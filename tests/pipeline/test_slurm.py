"""`deploy/slurm.sh` with Slurm's commands and Ray replaced by scripts that record how they were called."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

SCRIPT = ROOT / "deploy" / "slurm.sh"
STUBS = {
    "scontrol": 'echo "scontrol $*" >> "$LOG"; if [ "$1" = show ]; then printf "node-a\\nnode-b\\n"; fi',
    "srun": 'echo "srun $*" >> "$LOG"; shift; exec "$@"',
    # Runs what comes after `--`, as the first node does.
    "ray": 'echo "ray $*" >> "$LOG"; while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
    "python": 'echo "driver $*" >> "$LOG"; trap \'echo "driver stopped" >> "$LOG"; exit 1\' TERM\n'
    "for _ in $(seq $LASTS); do sleep 0.1; done; exit $STATUS",
}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of two nodes, in a folder with a virtual environment of stubs."""
    stubs = tmp_path / ".venv" / "bin"
    stubs.mkdir(parents=True)
    for name, body in STUBS.items():
        (stubs / name).write_text(f"#!/bin/bash\n{body}\n")
        (stubs / name).chmod(0o755)
    (stubs / "activate").write_text("")
    return os.environ | {
        "PATH": f"{stubs}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_NUM_NODES": "2",
        "STATUS": "0",
        "SLURM_CPUS_PER_TASK": "16",
        "SLURM_GPUS_ON_NODE": "4",
        "LASTS": "0",
    }


def start_job(job: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["bash", str(SCRIPT), "configs/laion.yaml", "run=/shared/a b"], env=job)


def read_log(job: dict[str, str]) -> list[str]:
    path = Path(job["LOG"])
    return path.read_text().splitlines() if path.exists() else []


def test_ray_starts_on_every_node_and_the_driver_on_the_first(job: dict[str, str]) -> None:
    from ray.scripts.scripts import start

    assert start_job(job).wait(60) == 0
    lines = read_log(job)
    (ray,) = (line for line in lines if line.startswith("ray "))
    assert "symmetric-run --address node-a:20007 --min-nodes 2 --num-cpus=16 --num-gpus=4" in ray
    options = {word.split("=")[0] for word in ray.split(" -- ")[0].split() if word.startswith("--")}
    assert options - {"--min-nodes"} <= {option for parameter in start.params for option in parameter.opts}
    assert lines[-1] == "driver -m pipeline run configs/laion.yaml run=/shared/a b cluster.address=node-a:20007"


def test_the_status_of_the_run_is_that_of_the_job(job: dict[str, str]) -> None:
    assert start_job(job | {"STATUS": "2"}).wait(60) == 2
    assert not any("requeue" in line for line in read_log(job))


def test_the_time_limit_stops_the_driver_and_requeues_the_job(job: dict[str, str]) -> None:
    started = start_job(job | {"LASTS": "600"})
    deadline = time.monotonic() + 60
    while not any(line.startswith("driver -m") for line in read_log(job)) and time.monotonic() < deadline:
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    started.wait(60)
    assert read_log(job)[-2:] == ["driver stopped", "scontrol requeue 7"]
