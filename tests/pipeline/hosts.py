"""Hosts of one's own on one machine, on one switch: each has a network, a process tree, a name and a /tmp to itself.

Nothing of it touches the network that the tests run in. A host that is killed is gone like one whose power failed: no
process of it says goodbye.
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

SUBNET = "10.77.0"
BRIDGE = "switch"


def why_not() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    words = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c"]
    attempt = "mount -t tmpfs tmpfs /tmp && ip link add one type veth peer name two && ip link add three type bridge"
    try:
        done = subprocess.run([*words, attempt], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"network namespaces cannot be made: {error}"
    return f"network namespaces cannot be made: {done.stderr.strip()}" if done.returncode else None


def inside(pid: int, *words: str) -> list[str]:
    """The command ``words`` in the network of process ``pid``."""
    return ["nsenter", "--target", str(pid), "--net", *words]


class Switch:
    """What all hosts are plugged into."""

    def __init__(self) -> None:
        self.process, self.pid = spawn("--net", script=f"ip link add {BRIDGE} type bridge; ip link set {BRIDGE} up")
        self.hosts: list[Host] = []

    def host(self, name: str, number: int) -> Host:
        """A new host with the address ``number`` of the subnet, up."""
        made = Host(self, name, number)
        self.hosts.append(made)
        made.start()
        return made

    def close(self) -> None:
        """Ends all hosts."""
        for host in self.hosts:
            host.kill()
        self.process.kill()
        self.process.wait()


class Host:
    """One of them."""

    def __init__(self, switch: Switch, name: str, number: int) -> None:
        self.switch, self.name, self.ip = switch, name, f"{SUBNET}.{number}"

    def start(self) -> None:
        """Power on, with an empty /tmp."""
        names = f"127.0.0.1 localhost\\n{self.ip} {self.name}\\n"
        script = (
            "mount -t tmpfs -o size=4g tmpfs /tmp; mount -t tmpfs -o size=400m tmpfs /dev/shm; "
            f"printf '{names}' > /tmp/hosts; mount --bind /tmp/hosts /etc/hosts; hostname {self.name}; "
            "ip link set lo up"
        )
        kinds = ("--net", "--mount", "--uts", "--pid", "--mount-proc")
        self.process, self.pid = spawn(*kinds, script=script)
        ours, theirs = self.switch.pid, self.pid
        run(inside(ours, "ip", "link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", str(theirs)))
        run(inside(ours, "ip", "link", "set", self.name, "master", BRIDGE, "up"))
        run(inside(theirs, "ip", "address", "add", f"{self.ip}/24", "dev", "eth0"))
        run(inside(theirs, "ip", "link", "set", "eth0", "up"))
        run(inside(theirs, "ip", "route", "add", "default", "dev", "eth0"))

    def popen(self, words: list[str], **options: Any) -> subprocess.Popen[str]:
        """Starts a command on this host; it ends with the host."""
        kinds = ["--net", "--mount", "--uts", "--pid"]
        if folder := options.pop("cwd", None):  # who enters a mount namespace stands at its root
            words = ["env", f"--chdir={folder}", *words]
        return subprocess.Popen(["nsenter", "--target", str(self.pid), *kinds, "--", *words], text=True, **options)

    def kill(self) -> None:
        """Power off."""
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.process.wait()
            # Its network goes when the last process is gone, which takes a moment; the cable's other end is pulled now,
            # lest it be in the way of the next start.
            subprocess.run(inside(self.switch.pid, "ip", "link", "delete", self.name), capture_output=True, check=False)

    def cut(self, off: bool) -> None:
        """Pulls the network plug, or puts it back."""
        run(inside(self.switch.pid, "ip", "link", "set", self.name, "down" if off else "up"))


def run(words: list[str]) -> None:
    """Runs a short command; its error is shown where it fails."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, (words, done.stderr)


def spawn(*kinds: str, script: str) -> tuple[subprocess.Popen[str], int]:
    """A process in namespaces of its own that has run ``script``; and the pid by which they are reached."""
    words = ["unshare", *kinds, "--fork", "--kill-child", "sh", "-ec", f"{script}; echo up; exec cat"]
    # Who made it holds the other end of its input, and takes it along wherever it ends.
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n", words
    pid = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    return process, pid


# ------------------------------------------------------------------------------------------------ a bucket there


class Bucket:
    """An S3 server on ``host`` with one bucket, seen from outside through a process that reads it there."""

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
            [sys.executable, "-u", __file__, self.NAME],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | self.env,
        )
        assert self.reader.stdout is not None and self.reader.stdout.readline() == "ready\n"

    def _ask(self, what: str, name: str) -> Any:
        assert self.reader.stdin is not None and self.reader.stdout is not None
        self.reader.stdin.write(json.dumps([what, name]) + "\n")
        self.reader.stdin.flush()
        return json.loads(self.reader.stdout.readline())

    def names(self, prefix: str) -> list[str]:
        """Keys that begin with ``prefix``."""
        return list(self._ask("list", prefix))

    def text(self, name: str) -> str | None:
        """An object's content; None where there is none."""
        found = self._ask("read", name)
        return None if found is None else str(found)


def serve_bucket(bucket: str) -> None:
    """Answers `Bucket`, on its host."""
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
        what, name = json.loads(line)
        if what == "list":
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=name)
            print(json.dumps([item["Key"] for page in pages for item in page.get("Contents", ())]))
            continue
        try:
            print(json.dumps(client.get_object(Bucket=bucket, Key=name)["Body"].read().decode()))
        except ClientError:
            print("null")


if __name__ == "__main__":
    serve_bucket(sys.argv[1])
