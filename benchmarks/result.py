"""What every benchmark writes: ``benchmarks/results/<name>.json``, in one form, and its claims on the terminal."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The processor, its cores, and the memory in GiB."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "gpu": None}


def commit() -> str | None:
    """The commit that the benchmark ran at; None outside of git."""
    here = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def claim(text: str, value: float, unit: str, target: float, at_most: bool = False) -> dict[str, Any]:
    """One claim; it is met where ``value`` reaches ``target``, or with ``at_most`` does not go beyond it."""
    met = value <= target if at_most else value >= target
    return {"claim": text, "value": round(value, 4), "unit": unit, "target": target, "met": bool(met)}


def write(
    name: str, rows: list[dict[str, Any]], claims: list[dict[str, Any]], packages: tuple[str, ...], **more: Any
) -> None:
    """Writes the result of benchmark ``name`` and prints its claims; ``packages``: whose versions matter.

    ``more`` adds keys, or replaces those that are known better (commit, date, versions).
    """
    result = {
        "benchmark": name,
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {package: version(package) for package in packages},
        "rows": rows,
        "claims": claims,
    } | more
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    for entry in claims:
        print(f"{entry['claim']}: {entry['value']} {entry['unit']} (target {entry['target']}, met: {entry['met']})")


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of the result of benchmark ``name`` that is kept."""
    rows: list[dict[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return rows
