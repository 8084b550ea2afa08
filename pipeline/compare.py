"""Two runs side by side on the same prompts and seeds: which is better, how sure that is, and what differs in them.

A side is a run folder, or an earlier state of one as ``RUN@FINGERPRINT`` of its stage `sample`. What made its samples
is read from the manifests that the samples' own one leads to, not from what run.json says by now.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from dataprep import storage
from dataprep.schema import UserError, read_table
from eval.clip import ClipScorer
from eval.distances import Moments, frechet_distance
from eval.statistics import bootstrap_pairs
from pipeline.report.images import png_url
from pipeline.steps.judge import EVALUATE
from pipeline.steps.measure import checks_of, validation_pictures
from pipeline.steps.models import clip_identity, clip_spec
from pipeline.store import Artifact, Run

HERE = Path(__file__).parent / "report"
MOST_PAIRS = 5000  # judged at most
WIDE = 128  # features of more dimensions make a Frechet distance slow: fewer bootstrap draws
DRAWS = {True: 50, False: 200}


@dataclass(frozen=True)
class Side:
    """One of the two: its name, and the artifacts that its samples come from."""

    name: str
    artifacts: dict[str, Artifact]  # "sample" and whatever it leads to

    @property
    def config(self) -> dict[str, Any]:
        """Dotted key -> plain value, of every stage that had a part in the samples."""
        found: dict[str, Any] = {}
        for artifact in self.artifacts.values():
            for key, value in artifact.manifest.config.items():
                found |= dict(_flat(key, value))
        return found


@dataclass
class Pair:
    """The same prompt and seed in both: the chosen image's row of each side, and its first candidate's."""

    prompt: str
    seed: int
    chosen: tuple[dict[str, Any], dict[str, Any]]
    first: tuple[dict[str, Any], dict[str, Any]]


@dataclass
class Row:
    """One measure. ``difference`` is B minus A: value, low, high."""

    name: str
    a: float
    b: float
    difference: dict[str, float]
    n: int
    percent: bool = False
    higher_is_better: bool = True
    verdict: str = field(init=False)

    def __post_init__(self) -> None:
        self.verdict = "cannot tell"
        if self.difference["low"] > 0 or self.difference["high"] < 0:
            self.verdict = "B is better" if (self.difference["low"] > 0) == self.higher_is_better else "A is better"


def load_side(name: str) -> Side:
    """The side that ``name`` says; UserError where there is no finished sample stage."""
    root, _, wanted = name.partition("@")
    run = Run(root)
    run.record()
    found = run.artifacts().get("sample")
    if wanted:
        folders = [Path(folder).name for folder in run.stage_folders("sample")]
        known = [item for item in (run.artifact("sample", folder) for folder in folders) if item]
        match = [item for item in known if item.manifest.fingerprint.startswith(wanted)]
        if len(match) != 1:
            have = ", ".join(item.manifest.fingerprint[:12] for item in known) or "none"
            raise UserError(f"{name}: {len(match)} finished sample stages begin with {wanted}; there are: {have}")
        found = match[0]
    if found is None:
        raise UserError(f"{root}: stage sample is not finished, there is nothing to compare; `imagen-ray run` it first")
    artifacts: dict[str, Artifact] = {"sample": found}
    waiting = [found]
    while waiting:
        for stage, fingerprint in waiting.pop().manifest.inputs.items():
            if stage not in artifacts and (item := run.artifact(stage, fingerprint)):
                artifacts[stage] = item
                waiting.append(item)
    return Side(name, artifacts)


def load_pairs(a: Side, b: Side) -> list[Pair]:
    """The judged prompts that both have at the same seed, in A's order; UserError where there are none."""
    one, other = _judged(a), _judged(b)
    pairs = [
        Pair(key[0], key[1], (one[key][0], other[key][0]), (one[key][1], other[key][1])) for key in one if key in other
    ]
    if not pairs:
        raise UserError(
            f"{a.name} and {b.name}: no judged prompt of the same text and seed in both ({len(one)} and {len(other)} "
            "prompts); compare runs of the same seed and sample.evaluate"
        )
    return pairs[:MOST_PAIRS]


def _judged(side: Side) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """(prompt, seed) -> rows of the chosen image and of the first candidate."""
    found: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for path in side.artifacts["sample"].files():
        for row in read_table(path, "samples").to_pylist():
            if row["role"] == EVALUATE:
                entry = found.setdefault((row["prompt"], row["seed"]), {})
                if row["chosen"]:
                    entry["chosen"] = row
                if row["index"] == 0:
                    entry["first"] = row
    return {key: [entry["chosen"], entry["first"]] for key, entry in found.items() if len(entry) == 2}


# ---------------------------------------------------------------------------------------------- measures


def measure_pairs(a: Side, b: Side, pairs: Sequence[Pair]) -> list[Row]:
    """Every measure of both, with the paired bootstrap of the difference over prompts."""
    rows = _composition(pairs)
    judges = {clip_identity(side.artifacts["clip"]): side for side in (b, a) if "clip" in side.artifacts}
    for side in list(judges.values())[::-1]:
        judge = "the CLIP of both" if len(judges) == 1 else f"the CLIP of {'A' if side is a else 'B'}"
        rows += _by_clip(ClipScorer.load(clip_spec(side.artifacts["clip"])), judge, a, pairs)
    return rows


def _composition(pairs: Sequence[Pair]) -> list[Row]:
    """Share of right images an attribute, chosen ones and first candidates apart."""
    rows = []
    for label, which in (("", "chosen"), (", first candidate", "first")):
        sides = [getattr(pair, which) for pair in pairs if all(row["checks"] for row in getattr(pair, which))]
        checks = [tuple(map(checks_of, side)) for side in sides]
        names = list(dict.fromkeys(name for one, _ in checks for name in one))
        for name in sorted(names, key=lambda name: name != "all") if which == "chosen" else ["all"] if names else []:
            title = "all attributes at once" if name == "all" else name
            right_N2 = np.asarray([(one[name], other[name]) for one, other in checks if name in one], np.float64)
            rows.append(_mean_row(f"{title} as asked{label}", right_N2, percent=True))
    return rows


def _by_clip(scorer: ClipScorer, judge: str, a: Side, pairs: Sequence[Pair]) -> list[Row]:
    """CLIP score of the chosen images and Frechet distance of the first candidates, both by one CLIP."""
    prompts = [pair.prompt for pair in pairs]
    texts = scorer.text_features(prompts)
    chosen = [scorer.image_features([_pixels(pair.chosen[side]) for pair in pairs]) for side in (0, 1)]
    scores_N2 = np.stack([np.einsum("nd,nd->n", images, texts) for images in chosen], axis=1)
    rows = [_mean_row(f"CLIP score by {judge}", scores_N2)]
    size = pairs[0].first[0]["size"]
    real = [image for _, image, _ in _real(a, size)]
    if len(real) < 2 or len(pairs) < 2:
        return rows
    reference = Moments(texts.shape[1])
    reference.add(scorer.image_features(real))
    first = [scorer.image_features([_pixels(pair.first[side]) for pair in pairs]) for side in (0, 1)]

    def distance(features_ND: np.ndarray) -> float:
        moments = Moments(features_ND.shape[1])
        moments.add(features_ND)
        return frechet_distance(reference, moments)

    def difference(picked: np.ndarray) -> float:
        return distance(first[1][picked]) - distance(first[0][picked])

    apart = bootstrap_pairs(len(pairs), difference, DRAWS[texts.shape[1] > WIDE])
    name = f"FD to {len(real)} validation images by {judge}, first candidate"
    values = [distance(features) for features in first]
    return [*rows, Row(name, values[0], values[1], apart, len(pairs), higher_is_better=False)]


def _mean_row(name: str, values_N2: np.ndarray, percent: bool = False) -> Row:
    gain_N = values_N2[:, 1] - values_N2[:, 0]
    means = values_N2.mean(axis=0)
    interval = bootstrap_pairs(len(gain_N), lambda picked: float(gain_N[picked].mean()))
    return Row(name, float(means[0]), float(means[1]), interval, len(gain_N), percent)


def _real(side: Side, size: int) -> Iterator[tuple[str, np.ndarray, str]]:
    pack = side.artifacts.get("pack")
    for path in pack.files() if pack else []:
        with storage.local_copy(path) as local:
            yield from validation_pictures(local, size)


def _pixels(row: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["png"])).convert("RGB"))


# ---------------------------------------------------------------------------------------------- differences


def differences(a: Side, b: Side) -> list[dict[str, str]]:
    """The config keys, and the parts of the code, in which the two differ."""
    one, other = a.config, b.config
    rows = [
        {"key": key, "a": _said(one, key), "b": _said(other, key)}
        for key in dict.fromkeys([*one, *other])
        if _said(one, key) != _said(other, key)
    ]
    for stage in dict.fromkeys([*a.artifacts, *b.artifacts]):
        codes = [s.artifacts[stage].manifest.code if stage in s.artifacts else {} for s in (a, b)]
        changed = sorted(name for name in {*codes[0], *codes[1]} if codes[0].get(name) != codes[1].get(name))
        if changed:
            names = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
            rows.append({"key": f"code of {stage}", "a": "", "b": f"differs in {names}"})
    return rows


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(f"{key}.{name}", item)
    else:
        yield key, value


def _said(config: Mapping[str, Any], key: str) -> str:
    return str(config[key]) if key in config else "(not there)"


# ---------------------------------------------------------------------------------------------- page


def verdict(rows: Sequence[Row]) -> str:
    """The sentence that says which is better, on how many measures, and by how much on the first of them."""
    better = {side: [row for row in rows if row.verdict == f"{side} is better"] for side in "BA"}
    parts = [f"{side} is better on {len(won)}: {said(won[0])}" for side, won in better.items() if won]
    if not parts:
        return f"The two cannot be told apart: on none of {len(rows)} measures is the difference beyond chance."
    lead = "Neither is better throughout. " if len(parts) > 1 else ""
    return f"{lead}Of {len(rows)} measures {'; '.join(parts)}."


def said(row: Row) -> str:
    """A row in words."""
    shown = _percent if row.percent else _plain
    low, high = shown(row.difference["low"]), shown(row.difference["high"])
    gap = shown(row.difference["value"])
    return f"{row.name} {shown(row.a)} (A) against {shown(row.b)} (B), difference {gap} [{low}, {high}]"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _plain(value: float) -> str:
    return f"{value:.4f}"


def page(a: Side, b: Side, pairs: Sequence[Pair], rows: Sequence[Row], shown: int) -> str:
    """The comparison as one self-contained HTML text, with ``shown`` pairs of pictures."""
    table = []
    for row in rows:
        form, apart = _percent if row.percent else _plain, row.difference
        entry = {"name": row.name, "a": form(row.a), "b": form(row.b), "n": row.n, "verdict": row.verdict}
        reach = max(abs(apart["low"]), abs(apart["high"]), 1e-12)
        sign = 1 if row.higher_is_better else -1  # to the right is always better for B
        entry |= {key: form(value) for key, value in apart.items()}
        entry |= {f"x_{key}": round(50 + sign * 48 * value / reach, 2) for key, value in apart.items()}
        table.append(entry)
    items = [
        {
            "prompt": pair.prompt,
            "seed": pair.seed,
            "sides": [_item(row) for row in pair.chosen],
            "differs": len({row["checks"] for row in pair.chosen}) > 1,
        }
        for pair in pairs[:shown]
    ]
    return render(
        "compare.html.jinja",
        title=f"{Path(a.name).name} against {Path(b.name).name}",
        names=[a.name, b.name],
        verdict=verdict(rows),
        table=table,
        differences=differences(a, b),
        pairs=items,
        count=len(pairs),
    )


def _item(row: Mapping[str, Any]) -> dict[str, Any]:
    wrong = [name for name, right in checks_of(row).items() if not right and name != "all"] if row["checks"] else []
    note = "wrong: " + ", ".join(wrong) if wrong else "all as asked" if row["checks"] else ""
    return {"src": png_url(row["png"]), "score": f"{row['clip_score']:.3f}", "note": note, "bad": bool(wrong)}


def render(template: str, **values: Any) -> str:
    """A page of this folder's templates; every value is escaped but the style sheet."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(css=(HERE / "page.css").read_text(), **values)
