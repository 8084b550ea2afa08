"""Quality against network evaluations for each sampler, on the base stage of a finished run of the demo.

    python -m benchmarks.sampling runs/demo

Each sampler samples the same prompts from the same noise, with the run's guidance and thresholds, at several numbers of
evaluations; `ddpm` at 250 is the reference. Under guidance, samplers that add noise (ddpm, dpmpp_2m_sde) and
deterministic ones (ddim, dpmpp_2m, unipc) converge to different limits; `ddim` at 250 is the limit of the latter, and
shows how much of their distance is due to few evaluations. Two measures: the Frechet distance to new drawings of other
prompts, which no model was trained on, at the stage's size, in the image features of the run's CLIP; and the share of
images that show everything that their prompt says, by the composition checker.

imagen-pytorch has one sampler: ancestral steps at evenly spaced times, like our `ddpm` (with the same posterior;
tests/train/diffusion/test_samplers.py checks ours against the closed form). So the rows of `ddpm` show the quality of
its sampler at each budget. Its code is not run: its loop calls U-Nets of its own class, and training one of those would
compare two networks, not two samplers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.result import make_claim, write_result
from dataprep.synthetic.renderer import draw_scene
from eval.metrics.composition import check_image
from eval.metrics.distances import frechet_distance
from eval.metrics.feature_sets import Moments
from eval.sampling.cascade import Cascade
from eval.sampling.options import SamplingOptions, SettingValue
from eval.sampling.prompts import EvalPrompt, scene_prompts
from pipeline.inference.sample import load_cascade
from train.diffusion.samplers import SAMPLERS

PROMPTS, DRAWINGS, SEED = 240, 1000, 5
REFERENCE, ANCESTRAL, BUDGET = "ddpm", 250, 20
LIMIT, DETERMINISTIC = "ddim", ("ddim", "dpmpp_2m", "unipc")
EVALUATIONS = (4, 6, 8, 10, 16, 20)
DETAIL = 256  # side in pixels of a drawing before it is downscaled, as training images are


def main() -> None:
    """Measures and prints each row; writes the rows so far after each sampler."""
    torch.set_num_threads(1)
    cascade = load_cascade(sys.argv[1])
    prompts = scene_prompts(PROMPTS // 2, SEED)
    size = cascade.stages[0].entry.resolution
    real = cascade.scorer.image_features(draw_prompts(scene_prompts(DRAWINGS // 2, SEED + 1), size))
    settings = cascade.stages[0].entry.sampling.model_dump(mode="json")
    more = {"prompts": PROMPTS, "drawings": DRAWINGS, "size": size, "settings": settings}
    rows = [measure_sampler(cascade, prompts, real, REFERENCE, steps) for steps in (ANCESTRAL, 50)]
    rows.append(measure_sampler(cascade, prompts, real, LIMIT, ANCESTRAL))
    for name in SAMPLERS:
        rows += [measure_sampler(cascade, prompts, real, name, steps) for steps in EVALUATIONS]
        write_result("sampling", rows, make_claims(rows), ("torch",), **more)


def draw_prompts(prompts: Sequence[EvalPrompt], size: int) -> list[np.ndarray]:
    """Returns true drawings of the prompts, uint8 RGB (size, size, 3)."""
    found = []
    for number, prompt in enumerate(prompts):
        assert prompt.claim is not None
        large = draw_scene(prompt.claim, np.random.default_rng([SEED, number]), DETAIL)
        found.append(cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA))
    return found


def measure_sampler(
    cascade: Cascade, prompts: Sequence[EvalPrompt], real_ND: np.ndarray, sampler: str, steps: int
) -> dict[str, Any]:
    """Returns the row of a sampler at ``steps`` evaluations; ``real_ND`` are the features of the drawings."""
    texts, base = [prompt.prompt for prompt in prompts], cascade.stages[0].entry.name
    before = time.process_time()
    changes: dict[str, SettingValue] = {"sampler": sampler, "steps": steps}
    samples = cascade.sample(texts, SamplingOptions(seed=SEED, stop_at=base, batch_size=60, changes=changes))
    seconds = time.process_time() - before
    images = [np.asarray(image) for image in samples.images]
    features_ND = cascade.scorer.image_features(images)
    right = [
        check_image(image, prompt.claim)["all"] for image, prompt in zip(images, prompts, strict=True) if prompt.claim
    ]
    row = {
        "sampler": sampler,
        "evaluations": steps,
        "distance": round(measure_distance(features_ND, real_ND), 5),
        "accuracy": round(sum(right) / len(right), 4),
        "clip_score": round(float((features_ND * cascade.scorer.text_features(texts)).sum(1).mean()), 4),
        "cpu_seconds": round(seconds, 1),
    }
    print(row, flush=True)
    return row


def measure_distance(one_ND: np.ndarray, other_ND: np.ndarray) -> float:
    """Returns the Frechet distance of two sets of features (N, D)."""
    sets = []
    for features_ND in (one_ND, other_ND):
        moments = Moments(features_ND.shape[1])
        moments.add(features_ND)
        sets.append(moments)
    return frechet_distance(*sets)


def make_claims(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Claims that `BUDGET` evaluations of every sampler are as good as `ANCESTRAL` of `REFERENCE`.

    The target of the accuracy allows one standard error of a difference of two shares of `PROMPTS` images, 4 points.
    """
    ancestral, limit = (
        next(row for row in rows if (row["sampler"], row["evaluations"]) == (name, ANCESTRAL))
        for name in (REFERENCE, LIMIT)
    )
    found = []
    for row in rows:
        if row["evaluations"] == BUDGET:
            name = f"{row['sampler']}, {BUDGET} evaluations, over {ANCESTRAL} of {REFERENCE}"
            ratio, gain = row["distance"] / ancestral["distance"], row["accuracy"] - ancestral["accuracy"]
            found.append(make_claim(f"{name}: distance", ratio, "x", 1.05, at_most=True))
            found.append(make_claim(f"{name}: accuracy gained", gain, "share", -0.04))
            if row["sampler"] in DETERMINISTIC:
                name = f"{row['sampler']}, {BUDGET} evaluations, over {ANCESTRAL} of {LIMIT}: distance"
                found.append(make_claim(name, row["distance"] / limit["distance"], "x", 1.05, at_most=True))
    return found


if __name__ == "__main__":
    main()
