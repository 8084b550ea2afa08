"""A real cluster of two nodes on this machine: submitted, attached to, followed, asked; then Ray's own command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.test_end_to_end import SMOKE, STAGES, Head, command, events, finish, manifests, outputs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(params=["token", "open"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Head]:
    """A head of one CPU and a node of its own beside it, with a token and without."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    head = Head(folder, "a-secret-of-the-test-" + "1" * 20 if request.param == "token" else None, cpus=1)
    head.wait()
    words = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    words += [f"--address=127.0.0.1:{head.port}", "--object-store-memory=100000000"]
    node = subprocess.Popen(words, env=head.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield head
    finally:
        node.send_signal(signal.SIGTERM)
        head.stop()
        node.kill()
        node.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two") / "run"


def test_the_smoke_run_on_two_nodes(cluster: Head, run: Path) -> None:
    """The first cluster makes the run; on the second one nothing is left to do, whoever submits it."""
    there = ["--address", cluster.address]
    first = command("submit", SMOKE, f"run={run}", *there, env=cluster.env)
    deadline = time.monotonic() + 300
    fresh = not run.exists()
    while fresh and not (run / "events.jsonl").exists():
        assert first.poll() is None and time.monotonic() < deadline, finish(first)
        time.sleep(0.2)
    if fresh:
        second = command("submit", SMOKE, f"run={run}", *there, env=cluster.env)
        code, told, _ = finish(command("status", str(run), *there, env=cluster.env))
        assert code == 0 and "running" in told and "run-" in told
        code, _, err = finish(command("submit", SMOKE, f"run={run}", "seed=7", *there, env=cluster.env))
        assert code == 2 and "with other arguments" in err
        code, out, err = finish(second, 900)
        assert code == 0 and "attached to job" in err and str(run / "report.html") in out, out + err
    code, out, err = finish(first, 900)
    assert code == 0 and str(run / "report.html") in out, out + err
    assert set(manifests(run)) == set(STAGES.split())
    started = [event["stage"] for event in events(run) if event["event"] == "stage_started"]
    assert sorted(started) == sorted(STAGES.split())  # each once
    code, out, _ = finish(command("logs", str(run), *there, env=cluster.env))
    assert code == 0 and str(run / "report.html") in out

    before = outputs(run)
    ray = [str(Path(sys.executable).parent / "ray"), "job", "submit", *there, "--working-dir", ".", "--"]
    plain = subprocess.run(
        [*ray, "python", "-m", "pipeline", "run", SMOKE, f"run={run}"],
        env=cluster.env | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert plain.returncode == 0 and str(run / "report.html") in plain.stdout, plain.stdout + plain.stderr
    assert outputs(run) == before
    assert len([event for event in events(run) if event["event"] == "stage_started"]) == len(started)
