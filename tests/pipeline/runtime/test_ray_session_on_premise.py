"""Ray's launcher starts deploy/on_premise.yaml over SSH on virtual hosts, a job runs there, and it is taken down.

The test changes what the file marks CHANGE, and the setup commands: the hosts cannot reach a package index and use the
libraries of this test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.hosts import Bucket, Host, Switch, find_obstacle
from tests.helpers.paths import ROOT

MISSING = [name for name in ("ssh", "/usr/sbin/sshd", "rsync") if shutil.which(name) is None]
REASON = find_obstacle() or (f"not installed: {', '.join(MISSING)}" if MISSING else None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.timeout(1500),
]
HOME = "/tmp/home"  # of root on every host; /tmp differs per host
# Each host has its own home and accounts; sshd needs /run/sshd.
ACCOUNTS = f"root:x:0:0:root:{HOME}:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
SSHD = """
mkdir -p {home}/.ssh /tmp/run && mount --bind /tmp/run /run && mkdir -p /run/sshd && chmod 755 /run/sshd
cat > {home}/.ssh/authorized_keys
printf '{accounts}' > /tmp/passwd && mount --bind /tmp/passwd /etc/passwd
printf 'root:*:19000:0:99999:7:::\\n' > /tmp/shadow && mount --bind /tmp/shadow /etc/shadow
ssh-keygen -q -t ed25519 -N '' -f /tmp/host_key
exec /usr/sbin/sshd -D -e -f /dev/null -h /tmp/host_key -o UsePAM=no -o StrictModes=no -o PermitRootLogin=yes
"""


class Site:
    """A client machine with a bucket, a head and two workers."""

    def __init__(self, log: Any) -> None:
        self.switch, self.log = Switch(), log
        self.outside = self.switch.add_host("store", 9)
        self.bucket = Bucket(self.outside, log)
        self.env = os.environ | self.bucket.env | {"HOME": HOME, "RAY_AUTH_MODE": "disabled"}
        self.env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.run(["sh", "-ec", f"mkdir -p {HOME}/.ssh; ssh-keygen -q -t ed25519 -N '' -f {HOME}/.ssh/key"])
        key = self.run(["cat", f"{HOME}/.ssh/key.pub"])
        self.machines = [self.switch.add_host(f"machine{number}", number) for number in (1, 2, 3)]
        for machine in self.machines:
            self.start_sshd(machine, key)

    def start_sshd(self, machine: Host, key: str) -> None:
        accounts = ACCOUNTS.replace("\n", "\\n")
        script = SSHD.format(home=HOME, accounts=accounts)
        process = machine.popen(
            ["sh", "-ec", script],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            env={"PATH": os.environ["PATH"]},
        )
        assert process.stdin is not None
        process.stdin.write(key)
        process.stdin.close()

    def run(self, words: list[str], given: str | None = None, timeout: float = 600) -> str:
        """Runs a command on the client machine and returns its output."""
        process = self.outside.popen(
            words, cwd=ROOT, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output, _ = process.communicate(given, timeout=timeout)
        assert process.returncode == 0, (words, output[-5000:])
        return output

    def monitor(self) -> str:
        """Returns the head's logs about the machines that it starts."""
        words = ["sh", "-c", "for f in /tmp/ray/session_latest/logs/monitor.*; do tail -n 60 $f; done"]
        output, _ = self.machines[0].popen(words, stdout=subprocess.PIPE).communicate(timeout=30)
        return output

    def config(self) -> str:
        """Returns deploy/on_premise.yaml adapted to these machines."""
        config = yaml.safe_load((ROOT / "deploy/on_premise.yaml").read_text())
        head, *workers = (machine.ip for machine in self.machines)
        config["provider"] |= {"head_ip": head, "worker_ips": workers}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": f"{HOME}/.ssh/key"}
        variables = self.bucket.env | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        lines = [f"export {name}={value}" for name, value in variables.items()]
        lines.append(f"export PATH={Path(sys.executable).parent}:$PATH")
        config["setup_commands"] = ["printf '" + "\\n".join(lines) + "\\n' > ~/.bashrc"]
        return yaml.safe_dump(config)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with (tmp_path / "hosts.log").open("w") as log:
        made = Site(log)
        try:
            yield made
        finally:
            made.switch.close()


def test_on_premise_machines_start_run_a_job_and_stop(site: Site) -> None:
    site.run(["sh", "-c", "cat > /tmp/cluster.yaml"], site.config())
    site.run(["ray", "up", "--yes", "/tmp/cluster.yaml"])
    # The dashboard listens on the head only; it is forwarded through SSH, as the file says.
    words = ["ray", "dashboard", "/tmp/cluster.yaml"]
    forwarding = site.outside.popen(words, cwd=ROOT, env=site.env, stdout=site.log, stderr=site.log)
    wait_until(lambda: len(list_alive(site)) == 3, site)

    lost = site.machines[2]
    before = list_alive(site)
    lost.popen(["pkill", "-KILL", "raylet"]).wait()
    wait_until(lambda: len(list_alive(site)) == 3 and list_alive(site) != before, site)  # the head has restarted it

    words = [sys.executable, "-m", "pipeline", "submit", "configs/smoke.yaml", f"run=s3://{Bucket.NAME}/run"]
    output = site.run([*words, "--address", "http://localhost:8265"], timeout=900)
    assert f"s3://{Bucket.NAME}/run/report.html" in output
    assert len([name for name in site.bucket.list_names("run/stages/") if name.endswith("/manifest.json")]) == 16

    forwarding.kill()
    site.run(["ray", "down", "--yes", "/tmp/cluster.yaml"])
    wait_until(lambda: not any(has_raylet(machine) for machine in site.machines), site)


def wait_until(condition: Callable[[], bool], site: Site) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, site.monitor()
        time.sleep(2)


def list_alive(site: Site) -> set[str]:
    """Returns the ids of the nodes that the head considers alive."""
    words = ["ray", "list", "nodes", "--filter", "state=ALIVE", "--format", "json"]
    output, _ = site.machines[0].popen(words, env=site.env, stdout=subprocess.PIPE).communicate(timeout=60)
    return {node["node_id"] for node in json.loads(output)}


def has_raylet(machine: Host) -> bool:
    words = ["sh", "-c", "cat /proc/[0-9]*/stat"]
    output, _ = machine.popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).communicate(timeout=30)
    return any("(raylet)" in line and " Z " not in line for line in output.splitlines())
