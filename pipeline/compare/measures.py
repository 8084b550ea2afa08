"""Which of two runs is better: measures on the same prompts and seeds, with bootstrap intervals of the difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from dataprep.io import storage
from eval.clip.scorer import ClipScorer
from eval.metrics.distances import frechet_distance
from eval.metrics.feature_sets import Moments
from eval.metrics.intervals import bootstrap_pairs
from pipeline.compare.runs import ComparedRun, ImagePair
from pipeline.stages.clip import digest_clip, read_clip_spec
from pipeline.stages.image_features import read_packed_images
from pipeline.units import format_decimal, format_percent

WIDE = 128  # feature dimensions above which a Frechet distance is slow: fewer bootstrap draws
DRAWS = {True: 50, False: 200}


@dataclass
class ComparisonRow:
    """One measure of both runs. ``difference`` is B minus A: value, low, high."""

    name: str
    a: float
    b: float
    difference: dict[str, float]
    n: int
    percent: bool = False
    higher_is_better: bool = True
    verdict: str = field(init=False)

    def __post_init__(self) -> None:
        self.verdict = "inconclusive"
        if self.difference["low"] > 0 or self.difference["high"] < 0:
            self.verdict = "B is better" if (self.difference["low"] > 0) == self.higher_is_better else "A is better"

    def format(self, value: float) -> str:
        """Returns a value of this measure as text."""
        return format_percent(value) if self.percent else format_decimal(value, 4)


def measure_pairs(a: ComparedRun, b: ComparedRun, pairs: Sequence[ImagePair]) -> list[ComparisonRow]:
    """Returns every measure of both runs with the paired bootstrap of the difference over prompts."""
    rows = _measure_composition(pairs)
    judges = {digest_clip(run.artifacts["clip"]): run for run in (b, a) if "clip" in run.artifacts}
    for run in list(judges.values())[::-1]:
        judge = "the CLIP of both" if len(judges) == 1 else f"the CLIP of {'A' if run is a else 'B'}"
        rows += _measure_by_clip(ClipScorer.load(read_clip_spec(run.artifacts["clip"])), judge, a, pairs)
    return rows


def _measure_composition(pairs: Sequence[ImagePair]) -> list[ComparisonRow]:
    """Share of correct images per attribute; for first candidates, of all attributes at once."""
    rows = []
    for label, which in (("", "chosen"), (", first candidate", "first")):
        sides = [[sample.checks or {} for sample in getattr(pair, which)] for pair in pairs]
        checks = [(ours, theirs) for ours, theirs in sides if ours and theirs]
        names = list(dict.fromkeys(name for ours, _ in checks for name in ours))
        for name in sorted(names, key=lambda name: name != "all") if which == "chosen" else ["all"] if names else []:
            title = "all attributes" if name == "all" else name
            right_N2 = np.asarray([(ours[name], theirs[name]) for ours, theirs in checks if name in ours], np.float64)
            rows.append(_compare_means(f"{title} correct{label}", right_N2, percent=True))
    return rows


def _measure_by_clip(scorer: ClipScorer, judge: str, a: ComparedRun, pairs: Sequence[ImagePair]) -> list[ComparisonRow]:
    """CLIP score of the chosen images and Frechet distance of the first candidates, both by one CLIP."""
    prompts = [pair.prompt for pair in pairs]
    texts = scorer.text_features(prompts)
    chosen = [scorer.image_features([pair.chosen[side].pixels() for pair in pairs]) for side in (0, 1)]
    scores_N2 = np.stack([np.einsum("nd,nd->n", images, texts) for images in chosen], axis=1)
    rows = [_compare_means(f"CLIP score by {judge}", scores_N2)]
    size = pairs[0].first[0].size
    real = [image for _, image, _ in _read_validation_images(a, size)]
    if len(real) < 2 or len(pairs) < 2:
        return rows
    reference = Moments(texts.shape[1])
    reference.add(scorer.image_features(real))
    first = [scorer.image_features([pair.first[side].pixels() for pair in pairs]) for side in (0, 1)]

    def distance(features_ND: np.ndarray) -> float:
        moments = Moments(features_ND.shape[1])
        moments.add(features_ND)
        return frechet_distance(reference, moments)

    def difference(picked: np.ndarray) -> float:
        return distance(first[1][picked]) - distance(first[0][picked])

    interval = bootstrap_pairs(len(pairs), difference, DRAWS[texts.shape[1] > WIDE])
    name = f"FD to {len(real)} validation images by {judge}, first candidate"
    values = [distance(features) for features in first]
    return [*rows, ComparisonRow(name, values[0], values[1], interval, len(pairs), higher_is_better=False)]


def _compare_means(name: str, values_N2: np.ndarray, percent: bool = False) -> ComparisonRow:
    gain_N = values_N2[:, 1] - values_N2[:, 0]
    means = values_N2.mean(axis=0)
    interval = bootstrap_pairs(len(gain_N), lambda picked: float(gain_N[picked].mean()))
    return ComparisonRow(name, float(means[0]), float(means[1]), interval, len(gain_N), percent)


def _read_validation_images(run: ComparedRun, size: int) -> Iterator[tuple[str, np.ndarray, str]]:
    pack = run.artifacts.get("pack")
    for path in pack.files() if pack else []:
        with storage.local_copy(path) as local:
            yield from read_packed_images(local, size)


def state_verdict(rows: Sequence[ComparisonRow]) -> str:
    """Returns a sentence: which run is better, on how many measures, and by how much on the first of them."""
    better = {side: [row for row in rows if row.verdict == f"{side} is better"] for side in "BA"}
    parts = [f"{side} is better on {len(won)}: {describe_row(won[0])}" for side, won in better.items() if won]
    if not parts:
        return f"Inconclusive: the difference is significant on none of {len(rows)} measures."
    lead = "Neither is better throughout. " if len(parts) > 1 else ""
    return f"{lead}Of {len(rows)} measures {'; '.join(parts)}."


def describe_row(row: ComparisonRow) -> str:
    """Returns a measure of both runs and its difference as text."""
    gap, low, high = (row.format(row.difference[key]) for key in ("value", "low", "high"))
    return f"{row.name} {row.format(row.a)} (A) against {row.format(row.b)} (B), difference {gap} [{low}, {high}]"
