"""Total time and composition accuracy of the demo, read from a finished run.

    python -m benchmarks.demo runs/demo

The time is the sum over all stages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.result import make_claim, write_result
from pipeline.store.run import Run

MINUTES, SHARE = 15.0, 0.9  # targets


def main() -> None:
    """Reads the run named on the command line, writes the result and prints its claims."""
    run = Run(sys.argv[1])
    record = run.record()
    metrics = json.loads((Path(run.root) / "metrics.json").read_text())
    minutes = sum(artifact.manifest.seconds for artifact in run.artifacts().values()) / 60
    claims = [
        make_claim("all stages, one after another, without installation", minutes, "minutes", MINUTES, at_most=True)
    ]
    for attribute in ("colour", "shape", "size", "position"):
        value = metrics["composition"]["seen"][attribute]
        claims.append(make_claim(f"{attribute} accuracy, seen prompts", value, "share", SHARE))
    ran = {"commit": record["git_commit"], "date": record["started"], "versions": record["versions"]}
    more = {"first_candidate": metrics["composition_first"]}
    write_result("demo", metrics["composition_table"], claims, (), **ran, **more)


if __name__ == "__main__":
    main()
