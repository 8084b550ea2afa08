"""Quality against network evaluations, for each sampler, on the base stage of a finished run of the demo.

    python -m benchmarks.sampling runs/demo

Each sampler draws the same prompts from the same noise, with the run's guidance and thresholds, at several numbers of
evaluations; `ddpm` at 250 is what the others are held against. With guidance the two ways to go there, with fresh noise
(ddpm, dpmpp_2m_sde) and without (ddim, dpmpp_2m, unipc), have limits of their own; `ddim` at 250 is what the latter
come to, and tells what of their distance is due to few evaluations. Two figures of each: the Frechet distance to fresh
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

PROMPTS, DRAWINGS, SEED = 240, 1000, 5
REFERENCE, ANCESTRAL, BUDGET = "ddpm", 250, 20
LIMIT, WITHOUT_NOISE = "ddim", ("ddim", "dpmpp_2m", "unipc")
EVALUATIONS = (4, 6, 8, 10, 16, 20)
DETAIL = 256  # pixels of a drawing, before it is reduced as training images are


def main() -> None:
    """Measures, prints each row, and after each sampler writes what there is."""
    torch.set_num_threads(1)
    cascade = load(sys.argv[1])
    prompts = scene_prompts(PROMPTS // 2, SEED)
    size = cascade.stages[0].entry.resolution
    real = cascade.scorer.image_features(drawings(scene_prompts(DRAWINGS // 2, SEED + 1), size))
    settings = cascade.stages[0].entry.sampling.model_dump(mode="json")
    more = {"prompts": PROMPTS, "drawings": DRAWINGS, "size": size, "settings": settings}
    rows = [measure(cascade, prompts, real, REFERENCE, steps) for steps in (ANCESTRAL, 50)]
    rows.append(measure(cascade, prompts, real, LIMIT, ANCESTRAL))
    for name in SAMPLERS:
        rows += [measure(cascade, prompts, real, name, steps) for steps in EVALUATIONS]
        write("sampling", rows, claims(rows), ("torch",), **more)


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
) -> dict[str, Any]:
    """A row: what the prompts come out as; ``real_ND`` are features to measure the distance to."""
    texts, base = [prompt.prompt for prompt in prompts], cascade.stages[0].entry.name
    before = time.process_time()
    drawn = cascade(texts, seed=SEED, stop_at=base, batch_size=60, sampler=sampler, steps=steps).images
    seconds = time.process_time() - before
    images = [np.asarray(image) for image in drawn]
    features_ND = cascade.scorer.image_features(images)
    right = [check(image, prompt.claim)["all"] for image, prompt in zip(images, prompts, strict=True) if prompt.claim]
    row = {
        "sampler": sampler,
        "evaluations": steps,
        "distance": round(distance(features_ND, real_ND), 5),
        "accuracy": round(sum(right) / len(right), 4),
        "clip_score": round(float((features_ND * cascade.scorer.text_features(texts)).sum(1).mean()), 4),
        "cpu_seconds": round(seconds, 1),
    }
    print(row, flush=True)
    return row


def distance(one_ND: np.ndarray, other_ND: np.ndarray) -> float:
    """Frechet distance of two sets of features."""
    sets = []
    for features_ND in (one_ND, other_ND):
        moments = Moments(features_ND.shape[1])
        moments.add(features_ND)
        sets.append(moments)
    return frechet_distance(*sets)


def claims(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """That `BUDGET` evaluations are as good as `ANCESTRAL` of `REFERENCE`: two claims a sampler, none picked out.

    The share's target leaves one standard error of a difference of two shares of so many pictures, about 4 points.
    """
    ancestral, limit = (
        next(row for row in rows if (row["sampler"], row["evaluations"]) == (name, ANCESTRAL))
        for name in (REFERENCE, LIMIT)
    )
    found = []
    for row in rows:
        if row["evaluations"] == BUDGET:
            name = f"{row['sampler']}, {BUDGET} evaluations, against {ANCESTRAL} ancestral ones"
            ratio, gain = row["distance"] / ancestral["distance"], row["accuracy"] - ancestral["accuracy"]
            found.append(claim(f"{name}: distance", ratio, "x", 1.05, at_most=True))
            found.append(claim(f"{name}: accuracy gained", gain, "share", -0.04))
            if row["sampler"] in WITHOUT_NOISE:
                name = f"{row['sampler']}, {BUDGET} evaluations, against {ANCESTRAL} of {LIMIT}: distance"
                found.append(claim(name, row["distance"] / limit["distance"], "x", 1.05, at_most=True))
    return found


if __name__ == "__main__":
    main()
