"""Connects the driver to Ray: a cluster that is there, or a small local one of its own."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

import ray

from dataprep.schema import UserError
from pipeline.config import ClusterConfig
from pipeline.progress import console

_CONNECTING = threading.Lock()
_OWN = threading.Event()  # set where Ray was started here


def connect(config: ClusterConfig) -> None:
    """Makes sure that Ray is up, once a process.

    The address is the config's, else RAY_ADDRESS (which Ray sets for a submitted job), else Ray is started here with
    the config's CPUs; that one ends with the driver, also where the driver is killed.

    Raises:
        UserError: no cluster answers at the address.
    """
    with _CONNECTING:
        if not ray.is_initialized():
            _connect(config)


def _connect(config: ClusterConfig) -> None:
    address = address_of(config)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address:
        try:
            ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"cluster.address={address}: no Ray cluster to be reached there ({str(error).splitlines()[0]}); "
                "start one with `ray start --head`, or leave the address out"
            ) from error
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a local Ray of our own is reached by this process alone
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes its only node away
        ray.init(
            address="local",  # also where `ray start` left a cluster on this machine, running or dead
            num_cpus=config.cpus or os.cpu_count(),
            object_store_memory=config.object_store_mb << 20,
            include_dashboard=False,
            **options,
        )
        _OWN.set()
    total = ray.cluster_resources()
    gpus = f", {total['GPU']:.0f} GPUs" if total.get("GPU") else ""
    where = address or "started here"
    console.print(f"[dim]ray: {where}, {len(ray.nodes())} node(s), {total.get('CPU', 0):.0f} CPUs{gpus}[/]")


def address_of(config: ClusterConfig) -> str | None:
    """The cluster to connect to; None where Ray is to be started here."""
    return config.address or os.environ.get("RAY_ADDRESS")


def grows() -> bool:
    """Whether nodes may join: a cluster that was not started here may have an autoscaler, or an operator."""
    return not _OWN.is_set()
