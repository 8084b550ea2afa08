"""Writes a benchmark's result to ``benchmarks/results/<name>.json`` and prints its claims."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def describe_machine() -> dict[str, Any]:
    """Returns the CPU's name, the number of cores and the memory in GiB."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "gpu": None}


def read_commit() -> str | None:
    """Returns the commit that is checked out; None outside of git."""
    here = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def describe_origin() -> dict[str, Any]:
    """Returns the commit and the CPU's name, for rows that stay in a file beside those of other machines."""
    return {"commit": read_commit(), "cpu": describe_machine()["cpu"]}


def make_claim(text: str, value: float, unit: str, target: float, at_most: bool = False) -> dict[str, Any]:
    """Returns a claim, which is met if ``value`` is at least ``target``, or with ``at_most`` at most ``target``."""
    met = value <= target if at_most else value >= target
    return {"claim": text, "value": round(value, 4), "unit": unit, "target": target, "met": bool(met)}


def write_result(
    name: str, rows: list[dict[str, Any]], claims: list[dict[str, Any]], packages: tuple[str, ...], **more: Any
) -> None:
    """Writes the result of the benchmark ``name`` and prints its claims. Arguments are those of `make_result`."""
    save_result(make_result(name, rows, claims, packages, **more), RESULTS)


def make_result(
    name: str, rows: list[dict[str, Any]], claims: list[dict[str, Any]], packages: tuple[str, ...], **more: Any
) -> dict[str, Any]:
    """Returns the result of the benchmark ``name``.

    Args:
        packages: distributions whose versions are recorded.
        more: further keys, or better values of commit, date and versions.
    """
    return {
        "benchmark": name,
        "commit": read_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": {package: version(package) for package in packages},
        "rows": rows,
        "claims": claims,
    } | more


def save_result(result: dict[str, Any], folder: Path) -> None:
    """Writes a result to ``folder`` and prints its claims."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result['benchmark']}.json").write_text(json.dumps(result, indent=2) + "\n")
    for entry in result["claims"]:
        print(f"{entry['claim']}: {entry['value']} {entry['unit']} (target {entry['target']}, met: {entry['met']})")


def read_rows(name: str) -> list[dict[str, Any]]:
    """Returns the rows of the recorded result of the benchmark ``name``."""
    rows: list[dict[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return rows
