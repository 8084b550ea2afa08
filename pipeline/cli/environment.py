"""The environment of a bug report: versions, devices, memory, disk. Nothing in it is secret."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dataprep.io.version import package_version
from pipeline.units import format_bytes

LIBRARIES = (
    "torch", "torchvision", "deepspeed", "ray", "transformers", "open_clip_torch", "img2dataset", "pyarrow", "numpy",
    "pydantic", "fsspec", "s3fs", "pillow", "typer",
)  # fmt: skip
VARIABLES = ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
DASHBOARD = "http://127.0.0.1:8265"
TIMEOUT = 2.0  # seconds to wait for the dashboard


def collect_environment(address: str | None = None) -> dict[str, Any]:
    """Returns section -> name -> value, as plain JSON values; sizes are in bytes.

    Args:
        address: URL of a Ray dashboard; default: RAY_API_SERVER_ADDRESS, else one on this machine.
    """
    disk = shutil.disk_usage(Path.cwd())
    return {
        "imagen-ray": package_version(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "libraries": {name: _library_version(name) for name in LIBRARIES},
        "torch": _describe_torch(),
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count(), "usable": len(os.sched_getaffinity(0))},
        "memory": {"total": _memory("MemTotal"), "available": _memory("MemAvailable")},
        "disk": {"folder": str(Path.cwd()), "total": disk.total, "free": disk.free},
        "ray": _find_dashboard(address or os.environ.get("RAY_API_SERVER_ADDRESS") or DASHBOARD),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def format_environment(found: dict[str, Any]) -> str:
    """Returns `collect_environment`'s result as aligned lines of text."""
    lines = []
    for section, value in found.items():
        entries = value if isinstance(value, dict) else {"": value}
        for name, item in entries.items():
            is_size = section in ("memory", "disk") and isinstance(item, int)
            label = f"{section} {name}".strip() if section != "libraries" else name
            lines.append(f"{label:<28} {format_bytes(item) if is_size else _format(item)}".rstrip())
    return "\n".join(lines)


def _format(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "none" if value is None else str(value)


def _library_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _describe_torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken installation is what the report is about
        return {"error": f"{type(error).__name__}: {error}"}
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        "build": torch.__version__,
        "CUDA": torch.version.cuda,
        "GPUs": [f"{gpu.name} ({format_bytes(gpu.total_memory)})" for gpu in gpus],
        "CPU instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _cpu_model() -> str:
    return _read_proc("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def _memory(name: str) -> int | None:
    value = _read_proc("/proc/meminfo", name)
    return None if value is None else int(value.split()[0]) * 1024


def _read_proc(path: str, name: str) -> str | None:
    """Returns the first value called ``name`` in a file of ``name: value`` lines; None where there is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    found = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in found if key.strip() == name), None)


def _find_dashboard(address: str) -> dict[str, Any]:
    """Returns the address and what answers there: the version of Ray, or that nothing does."""
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=TIMEOUT) as answer:
            return {"dashboard": address, "version": str(json.loads(answer.read())["ray_version"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {"dashboard": f"{address} does not answer ({error})", "version": None}
