"""What changes of the demo's recipe do to what it learns, at equal compute: variants on scenes, several seeds each.

    python -m benchmarks.ablation --screen batch muon ...        # eight mixtures of up to seven variants, or twelve
    python -m benchmarks.ablation --try base related muon+batch  # these alone, with --seeds each
    python -m benchmarks.ablation                                # the table of what is there

A variant is a file of `benchmarks/ablations/`: ``about`` says what it is, ``changes`` are keys of configs/demo.yaml. A
name a+b has the changes of both over those of ``base``, the recipe when the laboratory was made; ``demo`` is
configs/demo.yaml itself, and demo+a has changes over that.
Every training, text encoder and base together, has the same number of operations (`--flops`), counted; so a cheaper
network gets more updates. Rows go to `--folder` as they are finished, and a finished one is not run again.

A screening is a design of Plackett and Burman (Biometrika 33, 1946): each variant is on in half of the mixtures, so
that all of them measure the effect of each. Effects are fitted to all rows by least squares, one term per variant
without interactions, with 95% intervals by the spread that remains. The result has every row, for other fits.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from benchmarks.lab import Laboratory
from benchmarks.result import make_claim, write_result
from dataprep.io.errors import UserError
from dataprep.io.yaml_text import parse_yaml
from pipeline.config import RunConfig
from pipeline.config_loading import validate_config
from pipeline.store.fingerprint import hash_json

VARIANTS = Path(__file__).parent / "ablations"
BASE, RECIPE = "base", "demo"  # what variants change: the first recipe, or configs/demo.yaml as it is
DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
# First row of the designs of eight and of twelve; the others are its rotations, and one with every variant off.
PLACKETT_BURMAN = ((1, 1, 1, 0, 1, 0, 0), (1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0))
MEASURES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "all, seen": lambda row: row["seen"]["all"],
    "all, held out": lambda row: row["heldout"]["all"],
    "relation, both": lambda row: (row["seen"]["relation"] + row["heldout"]["relation"]) / 2,
    "shape, held out": lambda row: row["heldout"]["shape"],
    "error at log-SNR -6": lambda row: row["error_validation"]["-6"],
    "error at log-SNR 0": lambda row: row["error_validation"]["0"],
}
Tree = dict[str, Any]


def read_variant(name: str) -> Tree:
    """Returns the content of a variant's file; raises UserError for a name without one."""
    path = VARIANTS / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in VARIANTS.glob("*.yaml")))
        raise UserError(f"variant {name!r}: there is no {path}; take base, some of {known}, or a mixture a+b")
    tree = parse_yaml(path.read_bytes(), str(path))
    if not isinstance(tree, dict) or set(tree) != {"about", "changes"}:
        raise UserError(f"{path}: a variant has the keys about and changes, and no others")
    return tree


def split_mixture(mixture: str) -> list[str]:
    """Returns the names of the variants of a mixture, sorted; none of ``base`` and ``demo``."""
    return sorted(set(mixture.split("+")) - {BASE, RECIPE, ""})


def mix_config(mixture: str) -> RunConfig:
    """Returns the config of a mixture: the demo's, with the changes of `BASE` and over them those of every variant.

    Raises UserError where two variants change one key differently.
    """
    tree = parse_yaml(DEMO.read_bytes(), str(DEMO))
    changed: dict[tuple[str, ...], tuple[str, Any]] = {}
    for name in split_mixture(mixture):
        for key, value in flatten(read_variant(name)["changes"]).items():
            if changed.setdefault(key, (name, value))[1] != value:
                raise UserError(
                    f"{mixture}: {changed[key][0]} and {name} both change {'.'.join(key)}; take one of them"
                )
    base = {} if RECIPE in mixture.split("+") else flatten(read_variant(BASE)["changes"])
    for key, value in (base | {key: value for key, (_, value) in changed.items()}).items():
        set_value(tree, key, value)
    return validate_config(tree)


def flatten(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Returns the leaves of a tree by their path."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        found |= flatten(value, (*above, key)) if isinstance(value, dict) else {(*above, key): value}
    return found


def set_value(tree: Tree, path: Sequence[str], value: Any) -> None:
    """Sets a leaf of a tree."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = deepcopy(value)


def design_screening(names: Sequence[str], always: Sequence[str] = ()) -> list[str]:
    """Returns mixtures of variants, eight of up to seven or twelve of up to eleven; raises UserError for more.

    ``always``: variants that every mixture has.
    """
    names = sorted(set(names))
    first = next((row for row in PLACKETT_BURMAN if len(row) >= len(names)), None)
    if first is None:
        raise UserError(
            f"--screen: {len(names)} variants, the design has room for {len(PLACKETT_BURMAN[-1])}; take fewer"
        )
    rows = [*(np.roll(first, shift) for shift in range(len(first))), np.zeros(len(first), int)]
    return ["+".join([*always, *(name for name, on in zip(names, row, strict=False) if on)]) or BASE for row in rows]


# ---------------------------------------------------------------------------------------------- effects


def fit_effects(rows: Sequence[Mapping[str, Any]], measure: Callable[[Mapping[str, Any]], float]) -> list[Tree]:
    """Returns the effect of each variant on a measure, fitted to all rows by least squares, with 95% intervals.

    A variant that no row tells apart from others has none. ``low`` and ``high`` are None without rows to spare.
    """
    names = sorted({name for row in rows for name in split_mixture(row["mixture"])})
    on_NK = np.array([[name in split_mixture(row["mixture"]) for name in names] for row in rows], float)
    design_NK = np.column_stack([np.ones(len(rows)), on_NK])
    value_N = np.array([measure(row) for row in rows])
    spare = len(rows) - np.linalg.matrix_rank(design_NK)
    inverse_KK = np.linalg.pinv(design_NK.T @ design_NK)
    effect_K = inverse_KK @ design_NK.T @ value_N
    known_K = np.diag(inverse_KK @ design_NK.T @ design_NK) > 1 - 1e-6
    left = float(np.square(value_N - design_NK @ effect_K).sum())
    margin_K = student.ppf(0.975, spare) * np.sqrt(left / spare * np.diag(inverse_KK)) if spare else None
    found = []
    for at, name in enumerate(names, start=1):
        if known_K[at]:
            effect, margin = float(effect_K[at]), None if margin_K is None else float(margin_K[at])
            low, high = (None, None) if margin is None else (round(effect - margin, 5), round(effect + margin, 5))
            found.append({"variant": name, "rows": int(on_NK[:, at - 1].sum()), "effect": round(effect, 5)})
            found[-1] |= {"low": low, "high": high}
    return found


def fit_all(rows: Sequence[Mapping[str, Any]]) -> list[Tree]:
    """Returns the effect of every variant on every measure, for each number of operations by itself."""
    return [
        {"operations": budget, "measure": title} | effect
        for budget in sorted({row["budget"] for row in rows})
        for title, measure in MEASURES.items()
        for effect in fit_effects([row for row in rows if row["budget"] == budget], measure)
    ]


def compare_mixtures(rows: Sequence[Mapping[str, Any]]) -> list[Tree]:
    """Returns mean, least value and number of seeds of each mixture for every measure.

    Those of most operations come first, among these the best.
    """
    found = []
    for budget, mixture in sorted({(row["budget"], row["mixture"]) for row in rows}):
        own = [row for row in rows if (row["budget"], row["mixture"]) == (budget, mixture)]
        entry: Tree = {"operations": budget, "mixture": mixture, "seeds": len(own), "steps": own[0]["steps"]}
        for title, measure in MEASURES.items():
            entry[title] = round(float(np.mean([measure(row) for row in own])), 4)
        entry["worst, seen"] = min(row["seen"]["all"] for row in own)
        entry["worst, held out"] = min(row["heldout"]["all"] for row in own)
        found.append(entry | {name: round(float(np.mean([row[name] for row in own])), 4) for name in ("en", "zh")})
    return sorted(found, key=lambda entry: (-entry["operations"], -entry["all, seen"] - entry["all, held out"]))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints dicts of the same keys as a table."""
    if not rows:
        return
    cells = [[str(key) for key in rows[0]], *([_format(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


# ---------------------------------------------------------------------------------------------- running


def run_row(mixture: str, seed: int, folder: Path, flops: float, prompts: int) -> Tree:
    """Returns the row of a mixture and a seed, measured now unless it was before."""
    config = mix_config(mixture)
    shape = hash_json([config.model_dump(mode="json"), seed, flops, prompts])[:16]
    path = folder / "rows" / f"{shape}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"mixture": mixture, "budget": flops} | Laboratory(folder, flops, prompts).measure(config, seed, shape)
        path.write_text(json.dumps(row, indent=2))
    found: Tree = json.loads(path.read_text())
    return found | {"mixture": mixture}


def read_rows(folder: Path) -> list[Tree]:
    """Returns the finished rows below ``folder``, the first finished first."""
    paths = sorted((folder / "rows").glob("*.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text()) for path in paths]


def parse_arguments() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screen", nargs="+", default=[], metavar="VARIANT", help="mixtures of these, by design")
    parser.add_argument("--try", nargs="+", default=[], metavar="MIXTURE", dest="tried", help="these mixtures alone")
    parser.add_argument("--with", nargs="+", default=[], metavar="VARIANT", dest="always", help="in all of --screen")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of each of --try; a screening takes the first"
    )
    parser.add_argument("--flops", type=float, default=1e13, help="operations of a training, text encoder included")
    parser.add_argument("--prompts", type=int, default=150, help="prompts to judge, of each split")
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"), help="where rows and models are kept")
    return parser.parse_args()


def main() -> None:
    """Runs what is asked for, writes the result of all rows and prints tables."""
    given = parse_arguments()
    torch.set_num_threads(1)
    screened = design_screening(given.screen, given.always) if given.screen else []
    jobs = [(mixture, given.seeds[0]) for mixture in screened]
    jobs += [(mixture, seed) for seed in given.seeds for mixture in given.tried]
    for mixture, seed in jobs:
        print(json.dumps(run_row(mixture, seed, given.folder, given.flops, given.prompts)), flush=True)
    rows = read_rows(given.folder)
    if not rows:
        raise UserError(f"--folder {given.folder}: has no rows yet; run some with --screen or --try")
    report(rows)


def report(rows: Sequence[Tree]) -> None:
    """Writes the result of ``rows`` and prints its tables and claims.

    With the operations that were spent most, the best mixture is compared with the config as it is.
    """
    mixtures, effects = compare_mixtures(rows), fit_all(rows)
    print_table(mixtures)
    print_table(effects)
    largest = [entry for entry in mixtures if entry["operations"] == mixtures[0]["operations"]]
    by_name = {entry["mixture"]: entry for entry in largest}
    claims = []
    if BASE in by_name and len(largest) > 1:
        best = next(entry for entry in largest if entry["mixture"] != BASE)
        for title in ("all, seen", "all, held out", "relation, both"):
            text = f"{best['mixture']} over the config as it is, at equal compute: accuracy gained, {title}"
            claims.append(make_claim(text, best[title] - by_name[BASE][title], "share", 0.0))
    names = sorted({name for row in rows for name in split_mixture(row["mixture"])})
    about = {name: read_variant(name) for name in (BASE, *names)}
    more = {"variants": about, "mixtures": mixtures, "effects": effects}
    write_result("ablation", [dict(row) for row in rows], claims, ("torch",), **more)


if __name__ == "__main__":
    main()
