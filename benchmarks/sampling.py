"""Quality against network evaluations of a finished run of the demo: samplers, fitted levels, guidance, students.

    python -m benchmarks.sampling runs/demo [--students FOLDER] [--parts samplers fitted guidance cascade]

Part ``samplers``: each sampler, on the base stage; ``fitted``: the deterministic ones at noise levels fitted to that
stage (`eval.sampling.schedule_fitting`), on other captions than those that are judged; ``guidance``: an interval,
projection, and reused guidance; ``cascade``: all stages, as the run samples, and distilled to few evaluations by
`benchmarks.students`. Parts that are not named keep their rows; each row has its commit and CPU.

Each sampler samples the same prompts from the same noise, with the run's guidance and thresholds, at several numbers of
evaluations; `ddpm` at 250 is the reference. Under guidance, samplers that add noise (ddpm, dpmpp_2m_sde) and
deterministic ones (`DETERMINISTIC`) converge to different limits; `ddim` at 250 is the limit of the latter, and shows
how much of their distance is due to few evaluations. Two measures: the Frechet distance to new drawings of other
prompts, which no model was trained on, at the stage's size, in the image features of the run's CLIP; and the share of
images that show everything that their prompt says, by the composition checker.

imagen-pytorch has one sampler: ancestral steps at evenly spaced times, like our `ddpm` (with the same posterior;
tests/train/diffusion/test_samplers.py checks ours against the closed form). So the rows of `ddpm` show the quality of
its sampler at each budget. Its code is not run: its loop calls U-Nets of its own class, and training one of those would
compare two networks, not two samplers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.result import RESULTS, describe_origin, make_claim, read_rows, write_result
from benchmarks.students import COSTS
from dataprep.io.storage import read_json
from dataprep.synthetic.renderer import draw_scene
from eval.metrics.composition import check_image
from eval.metrics.distances import frechet_distance
from eval.metrics.feature_sets import Moments
from eval.sampling.cascade import Cascade
from eval.sampling.config import StageEntry, fix_sampling
from eval.sampling.options import SamplingOptions, SettingChanges
from eval.sampling.prompts import EvalPrompt, scene_prompts
from eval.sampling.schedule_fitting import choose_levels, measure_steps
from eval.sampling.stage_sampler import SamplerInputs, begin_sampling, pad_text
from pipeline.inference.sample import load_cascade, model_cascade
from train.diffusion.objective import evaluation_log_snrs
from train.diffusion.samplers import SAMPLERS
from train.models.distilled import read_distilled
from train.models.export import read_stage_settings

PROMPTS, DRAWINGS, SEED = 240, 1000, 5
REFERENCE, ANCESTRAL, BUDGET = "ddpm", 250, 20
LIMIT, DETERMINISTIC = "ddim", ("ddim", "dpmpp_2m", "unipc", "deis", "ipndm")
EVALUATIONS = (4, 6, 8, 10, 16, 20)
FITTED_EVALUATIONS, TRAJECTORIES, LEVELS = (3, 4, 5, 6, 8), 256, 48
DETAIL = 256  # side in pixels of a drawing before it is downscaled, as training images are
# Whole cascades by their evaluations: the student of each stage.
CASCADES = {7: ("base-4", "sr64-2", "sr256-1"), 4: ("base-2", "sr64-1", "sr256-1")}
STEPS_OF_GUIDANCE = 8
GUIDANCES: dict[str, SettingChanges] = {
    "as the run's": {},
    "off at high noise": {"guidance_interval": (0.0, 0.8)},
    "off at low noise": {"guidance_interval": (0.2, 1.0)},
    "every 2nd step": {"guidance_every": 2},
    "guidance 4": {"guidance": 4.0},
    "guidance 4, rescaled": {"guidance": 4.0, "guidance_rescale": 0.7},
    "guidance 4, projected": {"guidance": 4.0, "guidance_parallel": 0.0},
    "guidance 4, projected with momentum": {"guidance": 4.0, "guidance_parallel": 0.0, "guidance_momentum": -0.5},
}
Row = dict[str, Any]


class Bench:
    """A cascade, the prompts that are judged, and drawings to compare with."""

    def __init__(self, run: str, students: Path | None) -> None:
        self.run, self.students, self.cascade = run, students, load_cascade(run)
        self.prompts = scene_prompts(PROMPTS // 2, SEED)
        self.drawn: dict[int, np.ndarray] = {}

    def real_features(self, size: int) -> np.ndarray:
        """Returns the features (N, D) of drawings of other prompts at a size."""
        if size not in self.drawn:
            drawings = draw_prompts(scene_prompts(DRAWINGS // 2, SEED + 1), size)
            self.drawn[size] = self.cascade.scorer.image_features(drawings)
        return self.drawn[size]

    def measure(self, cascade: Cascade, changes: SettingChanges, stop_at: str | None = None) -> Row:
        """Returns distance, accuracy and CPU-seconds of sampling the prompts, all stages or up to ``stop_at``."""
        texts, before = [prompt.prompt for prompt in self.prompts], time.process_time()
        options = SamplingOptions(seed=SEED, stop_at=stop_at, batch_size=60 if stop_at else 16, changes=changes)
        samples = cascade.sample(texts, options)
        seconds = time.process_time() - before
        images = [np.asarray(image) for image in samples.images]
        features_ND = self.cascade.scorer.image_features(images)
        pairs = zip(images, self.prompts, strict=True)
        right = [check_image(image, prompt.claim)["all"] for image, prompt in pairs if prompt.claim]
        similarity = (features_ND * self.cascade.scorer.text_features(texts)).sum(1).mean()
        return {
            "distance": round(measure_distance(features_ND, self.real_features(images[0].shape[0])), 5),
            "accuracy": round(sum(right) / len(right), 4),
            "clip_score": round(float(similarity), 4),
            "cpu_seconds": round(seconds, 1),
        }


def draw_prompts(prompts: Sequence[EvalPrompt], size: int) -> list[np.ndarray]:
    """Returns true drawings of the prompts, uint8 RGB (size, size, 3)."""
    found = []
    for number, prompt in enumerate(prompts):
        assert prompt.claim is not None
        large = draw_scene(prompt.claim, np.random.default_rng([SEED, number]), DETAIL)
        found.append(cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA))
    return found


def measure_distance(one_ND: np.ndarray, other_ND: np.ndarray) -> float:
    """Returns the Frechet distance of two sets of features (N, D)."""
    sets = []
    for features_ND in (one_ND, other_ND):
        moments = Moments(features_ND.shape[1])
        moments.add(features_ND)
        sets.append(moments)
    return frechet_distance(*sets)


def measure_samplers(bench: Bench) -> Iterator[Row]:
    """Yields a row for each sampler and number of evaluations, of the base."""
    base = bench.cascade.stages[0].entry.name
    table = [(REFERENCE, ANCESTRAL), (REFERENCE, 50), (LIMIT, ANCESTRAL)]
    for name, steps in [*table, *((name, steps) for name in SAMPLERS for steps in EVALUATIONS)]:
        found = bench.measure(bench.cascade, {"sampler": name, "steps": steps}, base)
        yield {"sampler": name, "evaluations": steps, **found}


def measure_fitted(bench: Bench) -> Iterator[Row]:
    """Yields rows of deterministic samplers at fitted levels, and at even ones in as few evaluations."""
    stage, before = bench.cascade.stages[0], time.process_time()
    levels = evaluation_log_snrs(stage.diffusion, LEVELS)
    total, texts = torch.zeros(LEVELS, LEVELS + 1, dtype=torch.float64), scene_prompts(TRAJECTORIES // 2, SEED + 2)
    for start in range(0, len(texts), 32):
        encoded = bench.cascade.encoder.encode([prompt.prompt for prompt in texts[start : start + 32]])
        seeds = [(SEED, start + row) for row in range(len(encoded))]
        with torch.no_grad():
            denoise, noise_BCHW = begin_sampling(stage, stage.entry.sampling, SamplerInputs(pad_text(encoded)), seeds)
            total += measure_steps(denoise, noise_BCHW, levels) * len(encoded)
    spent = round(time.process_time() - before, 1)
    for steps in FITTED_EVALUATIONS:
        chosen = tuple(float(levels[number]) for number in choose_levels(total / len(texts), steps))
        kinds: dict[str, SettingChanges] = {"fitted": {"log_snrs": chosen}, "even": {"steps": steps}}
        for name in DETERMINISTIC:
            for kind, changes in kinds.items():
                found = bench.measure(bench.cascade, {"sampler": name, **changes}, stage.entry.name)
                yield {"sampler": name, "evaluations": steps, "levels": kind, "fit_cpu_seconds": spent, **found}


def measure_guidance(bench: Bench) -> Iterator[Row]:
    """Yields a row for each kind of guidance, of the base."""
    base = bench.cascade.stages[0].entry.name
    for name, changes in GUIDANCES.items():
        found = bench.measure(bench.cascade, {"steps": STEPS_OF_GUIDANCE, **changes}, base)
        yield {"guidance": name, "evaluations": STEPS_OF_GUIDANCE, **found}


def measure_cascades(bench: Bench) -> Iterator[Row]:
    """Yields rows of all stages: as the run samples them, in few evaluations without students, and with these."""
    plain = {stage.entry.name: stage.entry.sampling.count_evaluations() for stage in bench.cascade.stages}
    yield {"cascade": "teacher", "evaluations": sum(plain.values()), **bench.measure(bench.cascade, {})}
    for count, students in CASCADES.items():
        few = {name: int(student.partition("-")[2]) for name, student in zip(plain, students, strict=True)}
        yield {"cascade": "teacher", "evaluations": count, **bench.measure(bench.cascade, {"steps": few})}
        if bench.students is not None:
            cascade = load_students(bench, students)
            costs = read_json(str(bench.students / COSTS))
            trained = {"training_cpu_seconds": sum(costs[name]["cpu_seconds"] for name in students)}
            yield {"cascade": "distilled", "evaluations": count, **bench.measure(cascade, {}), **trained}


def load_students(bench: Bench, students: Sequence[str]) -> Cascade:
    """Returns the run's cascade with a student in place of each stage."""
    config = model_cascade(bench.run)
    entries = []
    for entry, name in zip(config.stages, students, strict=True):
        path = str(bench.students / name / "export") if bench.students else ""
        distilled = read_distilled(read_stage_settings(path)[1])
        assert distilled is not None
        values = entry.model_dump() | {"path": path} | fix_sampling(entry.sampling, distilled)
        entries.append(StageEntry.model_validate(values, strict=False))
    return Cascade.from_config(config.model_copy(update={"stages": entries}))


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "samplers": measure_samplers,
    "fitted": measure_fitted,
    "guidance": measure_guidance,
    "cascade": measure_cascades,
}


def claim_samplers(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Claims that `BUDGET` evaluations of every sampler are as good as `ANCESTRAL` of `REFERENCE`.

    The target of the accuracy allows one standard error of a difference of two shares of `PROMPTS` images, 4 points.
    """
    if not rows:
        return []
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


def claim_cascades(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Claims that a distilled cascade keeps 98% of its teacher's accuracy at 1.1 times its distance."""
    if not rows:
        return []
    teacher = max((row for row in rows if row["cascade"] == "teacher"), key=lambda row: int(row["evaluations"]))
    found = []
    for row in rows:
        if row["cascade"] == "distilled":
            name = f"distilled cascade, {row['evaluations']} evaluations, over the teacher's {teacher['evaluations']}"
            found.append(make_claim(f"{name}: accuracy", row["accuracy"] / teacher["accuracy"], "x", 0.98))
            ratio = row["distance"] / teacher["distance"]
            found.append(make_claim(f"{name}: distance", ratio, "x", 1.1, at_most=True))
            seconds = teacher["cpu_seconds"] / row["cpu_seconds"]
            found.append(make_claim(f"{name}: CPU-seconds an image, times fewer", seconds, "x", 2.0))
    return found


def main() -> None:
    """Measures and prints each row; writes the rows so far after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--students", type=Path, help="what benchmarks.students wrote")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(given.run, given.students)
    kept = read_rows("sampling") if (RESULTS / "sampling.json").exists() else []
    rows = [row for row in kept if row["part"] not in given.parts]
    settings = {stage.entry.name: stage.entry.sampling.model_dump(mode="json") for stage in bench.cascade.stages}
    more = {"prompts": PROMPTS, "drawings": DRAWINGS, "settings": settings}
    for part in given.parts:
        for row in PARTS[part](bench):
            rows.append({"part": part, **row, **describe_origin()})
            print(rows[-1], flush=True)
    by_part = {part: [row for row in rows if row["part"] == part] for part in PARTS}
    claims = claim_samplers(by_part["samplers"]) + claim_cascades(by_part["cascade"])
    write_result("sampling", [row for part in PARTS for row in by_part[part]], claims, ("torch",), **more)


if __name__ == "__main__":
    main()
