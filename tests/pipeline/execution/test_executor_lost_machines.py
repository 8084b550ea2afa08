"""Runs on several hosts that share only a bucket, with a worker killed, the head killed, or the network cut.

Every host is a set of namespaces with its own raylet (see hosts.py). The run finishes, by itself or after the same
command is repeated, with the artifacts of an undisturbed run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.hosts import Bucket, Host, Switch, find_obstacle
from tests.helpers.paths import ROOT

REASON = find_obstacle()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.timeout(1500),
]
# Four shards, and training long enough to be killed; the quality of the models does not matter.
SMALL = ["listing.scenes.count=80", "listing.rows_per_shard=20", "train.base.steps=16", "sample.prompts_per_shard=3"]
TIMED = ("log.jsonl", "training.json", "tensorboard/", "report.html", "report.md")  # of clock times, or their hashes
RAY = {
    "RAY_AUTH_MODE": "disabled",
    # A silent node counts as lost after about 12 s, a silent head after 15 s, not minutes.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
    # Ray gives its workers a low priority, at which they hardly run beside other work on the machine.
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
}


class Cluster:
    """A head that only coordinates, two workers of one CPU, and a bucket, each on its own host.

    ``dashboard``: whether the head has one, which jobs are submitted to.
    """

    def __init__(self, folder: Path, dashboard: bool = True) -> None:
        self.folder, self.switch, self.dashboard = folder, Switch(), dashboard
        self.log = (folder / "hosts.log").open("w")
        self.outside = self.switch.add_host("store", 9)
        self.bucket = Bucket(self.outside, self.log)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env = os.environ | self.bucket.env | RAY | {"PATH": path}
        self.head = self.switch.add_host("head", 1)
        self.workers = [self.switch.add_host(f"worker{number}", 10 + number) for number in (1, 2)]

    def start(self) -> None:
        """Starts Ray, the head first: a worker's start would take the CPU from it only to wait for it."""
        self.start_head()
        for worker in self.workers:
            self.start_worker(worker)

    def start_head(self) -> None:
        """Starts Ray on the head and returns once it accepts drivers and jobs."""
        # Without --block, which ends the head if one process of it ends. On a busy machine the server for Ray clients
        # does: it waits only 30 s for the head's raylet, and nobody here is its client.
        words = ["ray", "start", "--head", "--num-cpus=0", "--port=6379"]
        words.append("--dashboard-host=0.0.0.0" if self.dashboard else "--include-dashboard=false")
        code = self._start(self.head, words).wait(120)
        assert code == 0, f"the head did not start: {self.log.name}"
        if self.dashboard:
            self._await_dashboard()

    def start_worker(self, host: Host) -> None:
        """Starts a raylet that is restarted whenever it ends, as by a service manager."""
        words = ["ray", "start", "--block", "--num-cpus=1", f"--address={self.head.ip}:6379"]
        self._start(host, words, restart=True)

    def _start(self, host: Host, words: list[str], restart: bool = False) -> subprocess.Popen[str]:
        words = [*words, f"--node-ip-address={host.ip}", "--object-store-memory=100000000", "--disable-usage-stats"]
        script = f"while true; do {' '.join(words)}; sleep 1; done" if restart else " ".join(words)
        return host.popen(["sh", "-c", script], env=self.env, stdout=self.log, stderr=self.log)

    def submit(self, run: str) -> subprocess.Popen[str]:
        """Runs `imagen-ray submit` on a host outside the cluster."""
        words = [sys.executable, "-m", "pipeline", "submit", "configs/smoke.yaml", f"run=s3://{Bucket.NAME}/{run}"]
        words += [*SMALL, "--address", f"http://{self.head.ip}:8265"]
        log = (self.folder / f"{run}.log").open("a")
        return self.outside.popen(words, cwd=ROOT, env=self.env, stdout=log, stderr=log)

    def _await_dashboard(self) -> None:
        probe = f"import urllib.request; urllib.request.urlopen('http://{self.head.ip}:8265/api/version', timeout=2)"
        deadline = time.monotonic() + 120
        while self.outside.popen([sys.executable, "-c", probe], stderr=subprocess.DEVNULL).wait() != 0:
            assert time.monotonic() < deadline, "the dashboard did not come up"
            time.sleep(0.5)

    def tail(self, run: str) -> str:
        """Returns the end of the command's output, for a failed assertion."""
        return (self.folder / f"{run}.log").read_text()[-3000:]

    # -------------------------------------------------------------------------------------------- the run's state

    def events(self, run: str, kind: str) -> list[dict[str, Any]]:
        text = self.bucket.read_text(f"{run}/events.jsonl") or ""
        return [event for event in map(json.loads, text.splitlines()) if event["event"] == kind]

    def manifests(self, run: str) -> dict[str, dict[str, Any]]:
        names = [name for name in self.bucket.list_names(f"{run}/stages/") if name.endswith("/manifest.json")]
        return {name.split("/")[2]: json.loads(self.bucket.read_text(name) or "") for name in names}

    def outputs(self, run: str) -> dict[str, str]:
        """Returns stage/path -> sha256 of every output without clock times."""
        return {
            f"{stage}/{output['path']}": output["sha256"]
            for stage, manifest in self.manifests(run).items()
            for output in manifest["outputs"]
            if not any(part in output["path"] for part in TIMED)
        }

    def await_stage(self, run: str, stage: str, sign: str, command: subprocess.Popen[str]) -> None:
        """Waits until ``stage`` has started and, unless ``sign`` is empty, has an object with ``sign`` in its name."""
        deadline = time.monotonic() + 500
        while True:
            started = any(event["stage"] == stage for event in self.events(run, "stage_started"))
            if started and (not sign or any(sign in name for name in self.bucket.list_names(f"{run}/stages/{stage}/"))):
                break
            assert command.poll() is None and time.monotonic() < deadline, self.tail(run)
            time.sleep(0.2)
        assert stage not in self.manifests(run)

    def finish(self, run: str, command: subprocess.Popen[str], timeout: float = 600) -> int:
        code = command.wait(timeout)
        print(f"{run}: exit status {code}")
        return code

    def close(self) -> None:
        self.switch.close()
        self.log.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("hosts"))
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> dict[str, str]:
    """The outputs of an undisturbed run."""
    command = cluster.submit("undisturbed")
    assert cluster.finish("undisturbed", command) == 0, cluster.tail("undisturbed")
    found = cluster.outputs("undisturbed")
    assert len(cluster.manifests("undisturbed")) == 16 and len(found) > 40
    return found


def test_workers_killed_during_download_embed_training_and_sampling(
    cluster: Cluster, undisturbed: dict[str, str]
) -> None:
    command = cluster.submit("killed")
    for number, (stage, sign) in enumerate(
        [("download", ".shards/"), ("embed", ""), ("train.base", "log.jsonl"), ("sample", "")]
    ):
        cluster.await_stage("killed", stage, sign, command)
        victim = cluster.workers[number % 2]
        victim.kill()
        print(f"{victim.name} killed during {stage}")
        victim.start()
        cluster.start_worker(victim)
    assert cluster.finish("killed", command, 900) == 0, cluster.tail("killed")
    assert cluster.outputs("killed") == undisturbed
    started = [event["stage"] for event in cluster.events("killed", "stage_started")]
    assert len(started) == len(set(started)) == 16  # one driver throughout


def test_the_head_killed_and_restarted(cluster: Cluster, undisturbed: dict[str, str]) -> None:
    command = cluster.submit("beheaded")
    cluster.await_stage("beheaded", "train.base", "log.jsonl", command)
    before = cluster.manifests("beheaded")
    cluster.head.kill()
    cluster.head.start()
    cluster.start_head()
    assert cluster.finish("beheaded", command, 300) == 1
    assert "submit it again" in cluster.tail("beheaded")
    again = cluster.submit("beheaded")
    assert cluster.finish("beheaded", again, 900) == 0, cluster.tail("beheaded")
    assert cluster.outputs("beheaded") == undisturbed
    after = cluster.manifests("beheaded")
    assert {stage: after[stage] for stage in before} == before  # finished stages were not run again


def test_the_network_cut_for_30_seconds(cluster: Cluster, undisturbed: dict[str, str]) -> None:
    command = cluster.submit("cut")
    cut_network(cluster, command, "download", "", cluster.workers[0])
    cut_network(cluster, command, "train.base", "log.jsonl", cluster.workers[1])
    code = cluster.finish("cut", command, 900)
    if code != 0:
        print(cluster.tail("cut"))
        assert cluster.finish("cut", cluster.submit("cut"), 900) == 0, cluster.tail("cut")
    assert cluster.outputs("cut") == undisturbed


def cut_network(cluster: Cluster, command: subprocess.Popen[str], stage: str, sign: str, host: Host) -> None:
    cluster.await_stage("cut", stage, sign, command)
    host.set_cut(True)
    print(f"{host.name} disconnected during {stage}")
    time.sleep(30)
    host.set_cut(False)


def test_a_second_submit_attaches_and_a_second_driver_is_refused(cluster: Cluster, undisturbed: dict[str, str]) -> None:
    """The same run submitted twice has one job; a driver elsewhere finds the lease and exits with status 2."""
    commands = [cluster.submit("twice") for _ in range(2)]
    cluster.await_stage("twice", "download", "", commands[0])
    words = [sys.executable, "-m", "pipeline", "run", "configs/smoke.yaml", f"run=s3://{Bucket.NAME}/twice", *SMALL]
    elsewhere = cluster.outside.popen(words, cwd=ROOT, env=cluster.env, stderr=subprocess.PIPE)
    _, error = elsewhere.communicate(timeout=200)
    assert elsewhere.returncode == 2 and "another imagen-ray is running there" in " ".join(error.split())
    assert [cluster.finish("twice", command) for command in commands] == [0, 0], cluster.tail("twice")
    assert len(cluster.events("twice", "run_started")) == 1
    assert cluster.outputs("twice") == undisturbed
