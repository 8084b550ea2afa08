"""Connects the driver to Ray: to an existing cluster, or to a local one that it starts."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

import ray

from dataprep.io.errors import UserError
from pipeline.runtime.config import ClusterConfig
from pipeline.terminal import console

_CONNECTING = threading.Lock()
_STARTED_HERE = threading.Event()  # set if this process started Ray


def connect_ray(config: ClusterConfig) -> None:
    """Connects to Ray unless this process already has.

    The address is the config's, else RAY_ADDRESS (which Ray sets for a submitted job). Without one, a local Ray with
    the config's CPUs is started; it ends with the driver, even if the driver is killed.

    Raises:
        UserError: no cluster answers at the address.
    """
    with _CONNECTING:
        if not ray.is_initialized():
            _init_ray(config)


def _init_ray(config: ClusterConfig) -> None:
    address = find_cluster_address(config)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address:
        try:
            ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"cluster.address={address}: no Ray cluster answers there ({str(error).splitlines()[0]}); "
                "start one with `ray start --head`, or omit the address"
            ) from error
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # only this process connects to it
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # its only node is never preempted
        ray.init(
            address="local",  # ignores a cluster that `ray start` left on this machine, running or dead
            num_cpus=config.cpus or os.cpu_count(),
            object_store_memory=config.object_store_mb << 20,
            include_dashboard=False,
            **options,
        )
        _STARTED_HERE.set()
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
