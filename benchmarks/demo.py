"""What the demo learns over several seeds, its time and the operations of its training.

    python -m benchmarks.demo --seeds 5                    # runs the demo with seeds 0 to 4, then reads these runs
    python -m benchmarks.demo runs/demo runs/demo-seed-1   # reads finished runs

A finished run is not run again. The time is that from the start of the command to its end; of a run that several
commands made, the sum. The example is README's: four images of one
prompt, from the whole cascade with the seed that README gives, judged as all others are. The languages' gap is the
difference between the accuracy of English and Chinese prompts, of both splits, in the mean over the seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.flops import count_run
from benchmarks.result import make_claim, write_result
from dataprep.synthetic.grammar import parse_caption
from eval.metrics.composition import check_image
from eval.sampling.options import SamplingOptions
from pipeline.inference.sample import load_cascade
from pipeline.store.run import Run
from pipeline.store.wall_time import measure_wall

CONFIGS = Path(__file__).parents[1] / "configs"
EXAMPLE, EXAMPLE_IMAGES, EXAMPLE_SEED = "two small red circles left of a blue square", 4, 1
# Targets: accuracy of all attributes at once by split, in the mean and of the worst seed; the rest at most.
MEAN, WORST = {"seen": 0.95, "heldout": 0.88}, {"seen": 0.92, "heldout": 0.82}
LANGUAGE_GAP, MINUTES, OPERATIONS = 0.05, 10.0, 3e13
TITLES = {"seen": "combinations seen", "heldout": "combinations held out"}


def run_seed(seed: int, name: str = "demo") -> str:
    """Runs configs/NAME.yaml with a seed in a process of its own, unless it is finished; returns the run folder."""
    folder = f"runs/{name}-seed-{seed}"
    command = [sys.executable, "-m", "pipeline", "run", str(CONFIGS / f"{name}.yaml"), f"run={folder}", f"seed={seed}"]
    subprocess.run(command, check=True)
    return folder


def read_run(folder: str) -> dict[str, Any]:
    """Returns a row: time, operations by stage, accuracy by split, attribute and language, README's example."""
    run = Run(folder)
    record, metrics = run.record(), json.loads((Path(run.root) / "metrics.json").read_text())
    seconds = {stage: artifact.manifest.seconds for stage, artifact in run.artifacts().items()}
    return {
        "seed": record["config"]["seed"],
        "minutes": round(measure_wall(run.events()) / 60, 2),
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
        "flops": count_run(run),
        "composition": metrics["composition"],
        "first_candidate": metrics["composition_first"],
        "languages": metrics["composition_language"],
        "example_right": judge_example(folder),
        "table": metrics["composition_table"],
    }


def judge_example(folder: str) -> int:
    """Returns how many images of README's example prompt show all that it says."""
    claim = parse_caption(EXAMPLE)
    assert claim is not None
    images = load_cascade(folder).sample([EXAMPLE], SamplingOptions(num=EXAMPLE_IMAGES, seed=EXAMPLE_SEED)).images
    return sum(check_image(np.asarray(image), claim)["all"] for image in images)


def make_claims(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the claims on the spread over seeds."""
    claims = []
    for split, title in TITLES.items():
        values = [row["composition"][split]["all"] for row in rows]
        text = f"all attributes at once, {title}: mean of {len(rows)} seeds"
        claims.append(make_claim(text, float(np.mean(values)), "share", MEAN[split]))
        claims.append(make_claim(f"all attributes at once, {title}: worst seed", min(values), "share", WORST[split]))
    english, chinese = (float(np.mean([row["languages"][name]["all"] for row in rows])) for name in ("en", "zh"))
    claims.append(
        make_claim("English less Chinese, either way", abs(english - chinese), "share", LANGUAGE_GAP, at_most=True)
    )
    least = min(row["example_right"] for row in rows)
    claims.append(make_claim("README's example, worst seed: right", least, f"of {EXAMPLE_IMAGES}", EXAMPLE_IMAGES))
    operations = max(sum(row["flops"].values()) for row in rows)
    claims.append(make_claim("operations of all training", operations, "FLOP", OPERATIONS, at_most=True))
    minutes = float(np.mean([row["minutes"] for row in rows]))
    claims.append(make_claim("the whole command, without installation", minutes, "minutes", MINUTES, at_most=True))
    return claims


def main() -> None:
    """Runs or reads what the command line names, writes the result and prints its claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="finished runs of the demo")
    parser.add_argument("--seeds", type=int, default=0, metavar="N", help="run the demo with seeds 0 to N - 1")
    given = parser.parse_args()
    folders = [*given.runs, *(run_seed(seed) for seed in range(given.seeds))]
    if not folders:
        parser.error("give finished runs, or --seeds N to run the demo")
    rows = [read_run(folder) for folder in folders]
    record = Run(folders[-1]).record()
    ran = {"commit": record["git_commit"], "date": record["started"], "versions": record["versions"]}
    write_result("demo", rows, make_claims(rows), (), **ran)


if __name__ == "__main__":
    main()
