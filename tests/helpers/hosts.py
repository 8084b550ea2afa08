"""Virtual hosts on one switch, made of Linux namespaces: each has its own network, process tree, name and /tmp.

They do not touch the machine's own network. Killing a host is like a power failure: its processes end without cleanup.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.helpers.paths import ROOT

SUBNET = "10.77.0"
BRIDGE = "switch"


def find_obstacle() -> str | None:
    """Returns why this machine cannot create hosts; None if it can."""
    if os.geteuid() != 0:
        return "creating network namespaces needs root"
    words = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c"]
    attempt = "mount -t tmpfs tmpfs /tmp && ip link add one type veth peer name two && ip link add three type bridge"
    try:
        done = subprocess.run([*words, attempt], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"network namespaces cannot be created: {error}"
    return f"network namespaces cannot be created: {done.stderr.strip()}" if done.returncode else None


def in_network(pid: int, *words: str) -> list[str]:
    """Returns the command that runs ``words`` in the network of process ``pid``."""
    return ["nsenter", "--target", str(pid), "--net", *words]


class Switch:
    """The switch that connects all hosts."""

    def __init__(self) -> None:
        self.process, self.pid = spawn_namespaces(
            "--net", script=f"ip link add {BRIDGE} type bridge; ip link set {BRIDGE} up"
        )
        self.hosts: list[Host] = []

    def add_host(self, name: str, number: int) -> Host:
        """Starts and returns a new host with address ``number`` of the subnet."""
        host = Host(self, name, number)
        self.hosts.append(host)
        host.start()
        return host

    def close(self) -> None:
        """Kills all hosts."""
        for host in self.hosts:
            host.kill()
        self.process.kill()
        self.process.wait()


class Host:
    """A virtual host."""

    def __init__(self, switch: Switch, name: str, number: int) -> None:
        self.switch, self.name, self.ip = switch, name, f"{SUBNET}.{number}"

    def start(self) -> None:
        """Powers the host on, with an empty /tmp."""
        names = f"127.0.0.1 localhost\\n{self.ip} {self.name}\\n"
        script = (
            "mount -t tmpfs -o size=4g tmpfs /tmp; mount -t tmpfs -o size=400m tmpfs /dev/shm; "
            f"printf '{names}' > /tmp/hosts; mount --bind /tmp/hosts /etc/hosts; hostname {self.name}; "
            "ip link set lo up"
        )
        kinds = ("--net", "--mount", "--uts", "--pid", "--mount-proc")
        self.process, self.pid = spawn_namespaces(*kinds, script=script)
        switch, host = self.switch.pid, self.pid
        run_command(
            in_network(
                switch, "ip", "link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", str(host)
            )
        )
        run_command(in_network(switch, "ip", "link", "set", self.name, "master", BRIDGE, "up"))
        run_command(in_network(host, "ip", "address", "add", f"{self.ip}/24", "dev", "eth0"))
        run_command(in_network(host, "ip", "link", "set", "eth0", "up"))
        run_command(in_network(host, "ip", "route", "add", "default", "dev", "eth0"))

    def popen(self, words: list[str], **options: Any) -> subprocess.Popen[str]:
        """Starts a command on this host, which ends with the host."""
        kinds = ["--net", "--mount", "--uts", "--pid"]
        if folder := options.pop("cwd", None):  # a process that enters a mount namespace starts at its root
            words = ["env", f"--chdir={folder}", *words]
        return subprocess.Popen(["nsenter", "--target", str(self.pid), *kinds, "--", *words], text=True, **options)

    def kill(self) -> None:
        """Powers the host off."""
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.process.wait()
            # The kernel removes its network a moment after the last process ended. Delete the switch's end now, or the
            # next start would fail.
            subprocess.run(
                in_network(self.switch.pid, "ip", "link", "delete", self.name), capture_output=True, check=False
            )

    def set_cut(self, off: bool) -> None:
        """Disconnects the host from the network, or reconnects it."""
        run_command(in_network(self.switch.pid, "ip", "link", "set", self.name, "down" if off else "up"))


def run_command(words: list[str]) -> None:
    """Runs a short command; a failed assertion shows its error output."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, (words, done.stderr)


def spawn_namespaces(*kinds: str, script: str) -> tuple[subprocess.Popen[str], int]:
    """Runs ``script`` in new namespaces; returns a process that keeps them alive and the pid to enter them by."""
    words = ["unshare", *kinds, "--fork", "--kill-child", "sh", "-ec", f"{script}; echo up; exec cat"]
    # It ends with this process, which holds the other end of its stdin.
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n", words
    pid = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    return process, pid


# ------------------------------------------------------------------------------------------------ a bucket


class Bucket:
    """An S3 server on ``host`` with one bucket, read through a process on that host."""

    NAME, PORT = "runs", 9000

    def __init__(self, host: Host, log: Any) -> None:
        self.env = {
            "AWS_ENDPOINT_URL": f"http://{host.ip}:{self.PORT}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        server = [sys.executable, "-m", "moto.server", "--host", "0.0.0.0", "--port", str(self.PORT)]
        host.popen(server, stdout=log, stderr=log)
        self.reader = host.popen(
            [sys.executable, "-u", "-m", "tests.helpers.hosts", self.NAME],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | self.env | {"PYTHONPATH": str(ROOT)},
        )
        assert self.reader.stdout is not None and self.reader.stdout.readline() == "ready\n"

    def _query(self, action: str, name: str) -> Any:
        assert self.reader.stdin is not None and self.reader.stdout is not None
        self.reader.stdin.write(json.dumps([action, name]) + "\n")
        self.reader.stdin.flush()
        return json.loads(self.reader.stdout.readline())

    def list_names(self, prefix: str) -> list[str]:
        """Returns the keys that begin with ``prefix``."""
        return list(self._query("list", prefix))

    def read_text(self, name: str) -> str | None:
        """Returns an object's content; None if there is none."""
        found = self._query("read", name)
        return None if found is None else str(found)


def serve_bucket(bucket: str) -> None:
    """Answers the queries of `Bucket`, on its host."""
    import boto3
    from botocore.exceptions import ClientError, EndpointConnectionError

    client = boto3.client("s3")
    for _ in range(200):
        try:
            client.create_bucket(Bucket=bucket)
            break
        except EndpointConnectionError:
            time.sleep(0.2)
    print("ready")
    for line in sys.stdin:
        action, name = json.loads(line)
        if action == "list":
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=name)
            print(json.dumps([item["Key"] for page in pages for item in page.get("Contents", ())]))
            continue
        try:
            print(json.dumps(client.get_object(Bucket=bucket, Key=name)["Body"].read().decode()))
        except ClientError:
            print("null")


if __name__ == "__main__":
    serve_bucket(sys.argv[1])
