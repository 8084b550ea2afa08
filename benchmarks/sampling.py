"""Quality against network evaluations, for each sampler, on the base stage of a finished run of the demo.

    python -m benchmarks.sampling runs/demo

Each sampler draws the same prompts from the same noise, with the run's guidance and thresholds, at several numbers of
evaluations; `ddpm` at 250 is what the others are held against. Two figures of each: the Frechet distance to fresh
drawings of other prompts, which no model was trained on, at the stage's size, in the image features of the run's CLIP;
and the share of pictures that show all that their prompt says, by the composition checker.

imagen-pytorch has one sampler: ancestral steps at evenly spaced times, as our `ddpm` takes them (the posterior is the
same; tests/train/test_samplers.py holds ours to the closed form). So the rows of `ddpm` say what its sampling buys at
each budget. Its code itself does not run beside ours: its loop calls U-Nets of its own class, and one of those, trained
apart, would compare two networks, not two samplers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.result import claim, write
from dataprep.drawing import draw
from eval.cascade import Cascade
from eval.composition import check
from eval.distances import Moments, frechet_distance
from eval.prompts import EvalPrompt, scene_prompts
from pipeline.sampling import load
from train.diffusion.samplers import SAMPLERS

PROMPTS, DRAWINGS, SEED = 200, 600, 5
ANCESTRAL, BUDGET = 250, 20
EVALUATIONS = (4, 6, 8, 10, 16, 20)
DETAIL = 256  # pixels of a drawing, before it is reduced as training images are
DRAWS = 1000  # of the bootstrap


def main() -> None:
    """Measures, prints each row and writes the result."""
    torch.set_num_threads(1)
    cascade = load(sys.argv[1])
    prompts = scene_prompts(PROMPTS // 2, SEED)
    size = cascade.stages[0].entry.resolution
    real = cascade.scorer.image_features(drawings(scene_prompts(DRAWINGS // 2, SEED + 1), size))
    found = [measure(cascade, prompts, real, "ddpm", ANCESTRAL), measure(cascade, prompts, real, "ddpm", 50)]
    found += [measure(cascade, prompts, real, name, steps) for name in SAMPLERS for steps in EVALUATIONS]
    drawn = drawings(prompts, size)
    ceiling = float(np.mean([right(image, prompt) for image, prompt in zip(drawn, prompts, strict=True)]))
    rows = [row for row, _, _ in found]
    settings = cascade.stages[0].entry.sampling.model_dump(mode="json")
    more = {"prompts": PROMPTS, "drawings": DRAWINGS, "size": size, "ceiling": ceiling, "settings": settings}
    write("sampling", rows, claims(found), ("torch",), **more)


def drawings(prompts: Sequence[EvalPrompt], size: int) -> list[np.ndarray]:
    """What the prompts say, drawn, uint8 RGB (size, size, 3)."""
    found = []
    for number, prompt in enumerate(prompts):
        assert prompt.claim is not None
        large = draw(prompt.claim, np.random.default_rng([SEED, number]), DETAIL)
        found.append(cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA))
    return found


def measure(
    cascade: Cascade, prompts: Sequence[EvalPrompt], real_ND: np.ndarray, sampler: str, steps: int
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """A row; the features of what was drawn (N, D); and whether each picture shows what was asked (N,)."""
    texts, base = [prompt.prompt for prompt in prompts], cascade.stages[0].entry.name
    before = time.process_time()
    drawn = cascade(texts, seed=SEED, stop_at=base, batch_size=50, sampler=sampler, steps=steps).images
    seconds = time.process_time() - before
    images = [np.asarray(image) for image in drawn]
    features_ND = cascade.scorer.image_features(images)
    right_N = np.asarray([right(image, prompt) for image, prompt in zip(images, prompts, strict=True)])
    row = {
        "sampler": sampler,
        "evaluations": steps,
        "distance": round(distance(features_ND, real_ND), 5),
        "accuracy": round(float(right_N.mean()), 4),
        "clip_score": round(float((features_ND * cascade.scorer.text_features(texts)).sum(1).mean()), 4),
        "cpu_seconds": round(seconds, 1),
    }
    print(row, flush=True)
    return row, features_ND, right_N


def right(image_HWC: np.ndarray, prompt: EvalPrompt) -> bool:
    """Whether the picture shows all that the prompt says."""
    assert prompt.claim is not None
    return check(image_HWC, prompt.claim)["all"]


def distance(one_ND: np.ndarray, other_ND: np.ndarray) -> float:
    """Frechet distance of two sets of features."""
    sets = []
    for features_ND in (one_ND, other_ND):
        moments = Moments(features_ND.shape[1])
        moments.add(features_ND)
        sets.append(moments)
    return frechet_distance(*sets)


def claims(found: Sequence[tuple[dict[str, Any], np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    """That some sampler is as good in `BUDGET` evaluations as `ddpm` in `ANCESTRAL`: which, and by how much."""
    ancestral = found[0]
    best = min((each for each in found if each[0]["evaluations"] == BUDGET), key=lambda each: each[0]["distance"])
    name = f"{best[0]['sampler']}, {BUDGET} evaluations, against {ANCESTRAL} ancestral ones"
    rng, count = np.random.default_rng(0), len(best[2])
    gains = []
    for _ in range(DRAWS):
        rows = rng.integers(0, count, count)
        gains.append(float(best[2][rows].mean() - ancestral[2][rows].mean()))
    return [
        claim(f"{name}: distance", best[0]["distance"] / ancestral[0]["distance"], "x", 1.05, at_most=True),
        claim(f"{name}: accuracy gained, upper end of 95%", float(np.percentile(gains, 97.5)), "share", 0.0),
        claim(f"{name}: accuracy gained", float(best[2].mean() - ancestral[2].mean()), "share", -0.02),
    ]


if __name__ == "__main__":
    main()
