"""Connects the driver to Ray: to an existing cluster, or to a local one that it starts."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray

from dataprep.io.errors import UserError
from pipeline.profile import span
from pipeline.runtime.config import ClusterConfig
from pipeline.terminal import console

CONNECT_TIMEOUT, PORT_TIMEOUT = 45.0, 10.0  # seconds for a cluster to answer, and for its port to
_CONNECTING = threading.Lock()
_STARTED_HERE = threading.Event()  # set if this process starts Ray


def connect_ray(config: ClusterConfig) -> None:
    """Connects to Ray unless this process already has.

    The address is the config's, else RAY_ADDRESS (which Ray sets for a submitted job). Without one, a local Ray with
    the config's CPUs is started; it ends with the driver, even if the driver is killed.

    Raises:
        UserError: no cluster answers at the address.
    """
    with _CONNECTING:
        if not ray.is_initialized():
            with span("connect to Ray"):
                _call_in_lasting_thread(lambda: _init_ray(config), find_cluster_address(config))


def _call_in_lasting_thread(function: Callable[[], None], address: str | None) -> None:
    """Calls ``function`` in a thread that lives as long as this process: Ray's processes end with their thread.

    Raises UserError after `CONNECT_TIMEOUT` if there is an ``address``; Ray itself would try for ever.
    """
    done: Future[None] = Future()

    def run() -> None:
        try:
            function()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)
        threading.Event().wait()

    threading.Thread(target=run, name="Ray", daemon=True).start()
    try:
        done.result(CONNECT_TIMEOUT if address else None)
    except TimeoutError:
        raise _unreachable(str(address), f"no answer within {CONNECT_TIMEOUT:.0f} s") from None


def _unreachable(address: str, why: str) -> UserError:
    return UserError(
        f"cluster.address={address}: no Ray cluster answers there ({why}); start one with `ray start --head`, or omit "
        "cluster.address and unset RAY_ADDRESS to use this machine alone"
    )


def _check_port(address: str) -> None:
    """Raises UserError if nothing listens at ``host:port``; other forms of address are left to Ray."""
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), PORT_TIMEOUT).close()
    except OSError as error:
        raise _unreachable(address, str(error)) from error


def _init_ray(config: ClusterConfig) -> None:
    address = find_cluster_address(config)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address:
        _check_port(address)
        try:
            ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _unreachable(address, str(error).splitlines()[0]) from error
    else:
        _STARTED_HERE.set()
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # only this process connects to it
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # its only node is never preempted
        ray.init(
            address="local",  # ignores a cluster that `ray start` left on this machine, running or dead
            num_cpus=config.cpus or os.cpu_count(),
            object_store_memory=config.object_store_mb << 20,
            include_dashboard=False,
            **options,
        )
    total = ray.cluster_resources()
    gpus = f", {total['GPU']:.0f} GPUs" if total.get("GPU") else ""
    where = address or "started here"
    console.print(f"[dim]ray: {where}, {len(ray.nodes())} node(s), {total.get('CPU', 0):.0f} CPUs{gpus}[/]")


def find_cluster_address(config: ClusterConfig) -> str | None:
    """Returns the address of the cluster to connect to; None if a local Ray is to be started."""
    return config.address or os.environ.get("RAY_ADDRESS")


def can_grow() -> bool:
    """Returns whether nodes may join: an existing cluster may have an autoscaler or an operator."""
    return not _STARTED_HERE.is_set()
