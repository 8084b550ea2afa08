"""What the demo reaches: time of a run from nothing, and the composition checker's figures, read from a finished run.

    python -m benchmarks.demo runs/demo

Writes ``benchmarks/results/demo.json``. The time is that of all its stages.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.store import Run

RESULT = Path(__file__).parent / "results" / "demo.json"
MINUTES, SHARE = 15.0, 0.9  # the targets


def machine() -> dict[str, Any]:
    """The processor, its cores, and the memory in GiB."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "gpu": None}


def claim(text: str, value: float, unit: str, target: float, met: bool) -> dict[str, Any]:
    """One claim in the form that every benchmark's result has."""
    return {"claim": text, "value": round(value, 4), "unit": unit, "target": target, "met": met}


def main() -> None:
    """Reads the run that the command line names, writes the result and prints its claims."""
    run = Run(sys.argv[1])
    record = run.record()
    metrics = json.loads((Path(run.root) / "metrics.json").read_text())
    minutes = sum(artifact.manifest.seconds for artifact in run.artifacts().values()) / 60
    claims = [
        claim(
            "the stages of the demo, one after another, install left out",
            minutes,
            "minutes",
            MINUTES,
            minutes <= MINUTES,
        )
    ]
    for attribute in ("colour", "shape", "size", "position"):
        value = metrics["composition"]["seen"][attribute]
        claims.append(claim(f"{attribute} as asked, seen prompts", value, "share", SHARE, value >= SHARE))
    result = {
        "benchmark": "demo",
        "commit": record["git_commit"],
        "date": record["started"],
        "machine": machine(),
        "versions": record["versions"],
        "rows": metrics["composition_table"],
        "first_candidate": metrics["composition_first"],
        "claims": claims,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    for entry in claims:
        print(f"{entry['claim']}: {entry['value']} {entry['unit']} (target {entry['target']}, met: {entry['met']})")


if __name__ == "__main__":
    main()
