"""The other ways to an image beside the demo's U-Nets: what each config learns on the embedded corpus, and its cost.

    python -m benchmarks.generators --seeds 3    # runs configs/{demo,dit,bert_vq,dalle2}.yaml with seeds 0 to 2
    python -m benchmarks.generators runs/demo runs/dit-seed-1    # reads finished runs, named as their config

A finished run is not run again. The rows of other runs are kept from the last result; each row has the commit and the
CPU that it was read with. Accuracy is that of all attributes at once, best of 2 by CLIP at 64 pixels, as the report of
each has it; operations are those of all training, counted; the time is that of the whole command. A claim compares a
config with the demo over the seeds that both have. ``--busy`` says that the machine had other work beside these runs,
of more than the lowest priority: their times count in no claim.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo import read_run, run_seed
from benchmarks.result import RESULTS, describe_origin, make_claim, read_rows, write_result

REFERENCE, OTHERS = "demo", ("dit", "bert_vq", "dalle2")
BEHIND, MINUTES = 0.05, 25.0  # targets: points of accuracy behind the demo, and the time of a run, at most


def read_named(folder: str, busy: bool) -> dict[str, Any]:
    """Returns a row of `benchmarks.demo.read_run` with the name of the config, which the run folder has."""
    return {"config": Path(folder).name.partition("-seed-")[0], "busy": busy} | describe_origin() | read_run(folder)


def replace_rows(kept: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns ``rows`` and those of ``kept`` that are of other configs or seeds, in the order of configs and seeds."""
    found = {(row["config"], row["seed"]): row for row in (*kept, *rows)}
    names = (REFERENCE, *OTHERS)
    return sorted(found.values(), key=lambda row: (names.index(row["config"]), row["seed"]))


def compare(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the claims of each config that has a seed in common with the demo."""
    claims = []
    reference = {row["seed"]: row for row in rows if row["config"] == REFERENCE}
    for name in OTHERS:
        own = [row for row in rows if row["config"] == name and row["seed"] in reference]
        if not own:
            continue
        seeds = f"mean of {len(own)} seed{'s' if len(own) > 1 else ''}"
        for split in ("seen", "heldout"):
            gains = [
                row["composition"][split]["all"] - reference[row["seed"]]["composition"][split]["all"] for row in own
            ]
            claims.append(
                make_claim(
                    f"{name}: accuracy over the demo's, {split}, {seeds}", float(np.mean(gains)), "share", -BEHIND
                )
            )
        if alone := [row["minutes"] for row in own if not row["busy"]]:
            text = f"{name}: the whole command, longest of {len(alone)}"
            claims.append(make_claim(text, max(alone), "minutes", MINUTES, at_most=True))
    return claims


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Prints accuracy and cost of each run."""
    print(f"{'config':10} seed  seen  held out  relation  TFLOP  minutes")
    for row in rows:
        seen, heldout = (row["composition"][split] for split in ("seen", "heldout"))
        operations = sum(row["flops"].values()) / 1e12
        print(
            f"{row['config']:10} {row['seed']:4}  {seen['all']:4.0%}  {heldout['all']:8.0%}  {seen['relation']:8.0%}"
            f"  {operations:5.1f}  {row['minutes']:7.1f}{' busy' if row['busy'] else ''}"
        )


def main() -> None:
    """Runs or reads what the command line names, writes the result and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="finished runs")
    parser.add_argument("--seeds", type=int, default=0, metavar="N", help="run each config with seeds 0 to N - 1")
    parser.add_argument("--busy", action="store_true", help="the machine has other work: do not judge the times")
    given = parser.parse_args()
    names = (REFERENCE, *OTHERS)
    folders = [*given.runs, *(run_seed(seed, name) for seed in range(given.seeds) for name in names)]
    if not folders:
        parser.error("give finished runs, or --seeds N to run all configs")
    kept = read_rows("generators") if (RESULTS / "generators.json").exists() else []
    rows = replace_rows(kept, [read_named(folder, given.busy) for folder in folders])
    print_rows(rows)
    write_result("generators", rows, compare(rows), ("torch",))


if __name__ == "__main__":
    main()
