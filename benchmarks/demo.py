"""What the demo reaches: time of a run from nothing, and the composition checker's figures, read from a finished run.

    python -m benchmarks.demo runs/demo

The time is that of all its stages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.result import claim, write
from pipeline.store import Run

MINUTES, SHARE = 15.0, 0.9  # the targets


def main() -> None:
    """Reads the run that the command line names, writes the result and prints its claims."""
    run = Run(sys.argv[1])
    record = run.record()
    metrics = json.loads((Path(run.root) / "metrics.json").read_text())
    minutes = sum(artifact.manifest.seconds for artifact in run.artifacts().values()) / 60
    claims = [claim("all stages, one after another, install left out", minutes, "minutes", MINUTES, at_most=True)]
    for attribute in ("colour", "shape", "size", "position"):
        value = metrics["composition"]["seen"][attribute]
        claims.append(claim(f"{attribute} as asked, seen prompts", value, "share", SHARE))
    ran = {"commit": record["git_commit"], "date": record["started"], "versions": record["versions"]}
    more = {"first_candidate": metrics["composition_first"]}
    write("demo", metrics["composition_table"], claims, (), **ran, **more)


if __name__ == "__main__":
    main()
