"""A small CLIP by its towers, at equal CPU-seconds: ResNet or ViT, and a trained or the frozen text tower.

    python -m benchmarks.clip_towers [--seeds 0 1 2] [--updates 150] [--scenes 4096] [--encoder FOLDER]

Scenes of the embedded corpus at 64 pixels with their captions; 512 others are held out. The frozen text encoder is a
folder, or by default a T5 of the demo's sizes that is pretrained on the captions here (its training, which a run needs
for its cascade anyway, is not counted). The demo's CLIP, a ResNet with a trained text tower, gets ``--updates`` updates
of 128 pairs, and every other pair of towers as many as take the same CPU-seconds, on one thread: those of an update are
the difference of two short trainings. What the whole training then took stands beside, and the operations of matrix
products, convolutions and attention, forward and backward (`benchmarks.flops`). Recall is the mean of both directions
among the held-out pairs (`eval.metrics.retrieval`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.flops import count_updates
from benchmarks.result import make_claim, write_result
from dataprep.synthetic.grammar import render_caption, sample_claim
from dataprep.synthetic.renderer import draw_scene
from eval.clip.scorer import ClipScorer
from eval.metrics.retrieval import measure_retrieval
from train.config import TrainConfig
from train.loader.loader import Batch, Stream
from train.loop import train
from train.tasks.clip import ClipTask
from train.tasks.clip_config import ClipTaskConfig
from train.tasks.t5 import train_t5
from train.tasks.t5_config import T5TrainingConfig

SIDE, HELD_OUT, BATCH = 64, 512, 128
SHORT, ROUNDS = (4, 16), 3  # updates of the trainings that time an update, and how often: the towers take turns
# The demo's; its number of updates is that of the first pair of towers alone.
LOOP = TrainConfig(steps=150, batch_size=BATCH, optimizer="muon", learning_rate=4e-3, warmup_steps=20, zero_stage=0)
TOWERS: dict[str, dict[str, Any]] = {
    "ResNet, trained text": {},
    "ViT, trained text": {"image_tower": "vit"},
    "ResNet, frozen text": {"text_tower": "frozen"},
    "ViT, frozen text": {"image_tower": "vit", "text_tower": "frozen"},
}


class Scenes(Stream):
    """Drawn scenes and their captions, in memory."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed, BATCH)
        rng = np.random.default_rng([seed, count])
        claims = [sample_claim(rng) for _ in range(count)]
        self.images = [draw_scene(claim, rng, SIDE) for claim in claims]
        self.captions = [render_caption(claim) for claim in claims]

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        pixels = torch.from_numpy(np.stack([self.images[row] for row in rows]))
        captions = [self.captions[row] for row in rows]
        return {"key": [str(row) for row in rows], "caption": captions, f"pixels_{SIDE}": pixels}


def main() -> None:
    """Trains every pair of towers, prints its recall, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=150, help="of the demo's towers")
    parser.add_argument("--scenes", type=int, default=4096)
    parser.add_argument("--encoder", help="folder of the frozen text encoder")
    given = parser.parse_args()
    torch.set_num_threads(1)
    held_out, rows = Scenes(HELD_OUT, 1_000_000), []
    with tempfile.TemporaryDirectory(prefix="imagen-ray-bench-") as scratch:
        each: dict[str, float] = {}
        for seed in given.seeds:
            scenes, folder = Scenes(given.scenes, seed), Path(scratch) / str(seed)
            encoder = given.encoder or pretrain_encoder(scenes.captions, folder / "t5", seed)
            tasks = {name: ClipTask(ClipTaskConfig.model_validate(own), encoder) for name, own in TOWERS.items()}
            each = each or time_updates(tasks, scenes, folder)
            for name, task in tasks.items():
                updates = round(given.updates * each[next(iter(TOWERS))] / each[name])
                row = measure(task, scenes, held_out, updates, folder / name, seed)
                rows.append({"towers": name, "seed": seed, "cpu_ms_per_update": round(1000 * each[name], 1)} | row)
                print(rows[-1], flush=True)
    write_result("clip_towers", rows, make_claims(rows), ("torch", "open_clip_torch", "transformers"))


def pretrain_encoder(captions: list[str], folder: Path, seed: int) -> str:
    """Pretrains the demo's T5 on the captions; returns its folder."""
    sizes = {"d_model": 128, "layers": 1, "steps": 150, "batch_size": 64, "learning_rate": 3e-3, "warmup_steps": 20}
    train_t5(captions, T5TrainingConfig.model_validate(sizes | {"zero_stage": 0}), str(folder), seed)
    return str(folder / "export")


def time_updates(tasks: Mapping[str, ClipTask], scenes: Scenes, folder: Path) -> dict[str, float]:
    """Returns the CPU-seconds of an update of each pair of towers, the median of `ROUNDS`."""
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(ROUNDS):
        for name, task in tasks.items():
            few, more = (train_for(task, scenes, steps, folder / f"{name}-{number}-{steps}", 0)[1] for steps in SHORT)
            found[name].append((more - few) / (SHORT[1] - SHORT[0]))
    return {name: median(values) for name, values in found.items()}


def train_for(task: ClipTask, scenes: Scenes, updates: int, folder: Path, seed: int) -> tuple[dict[str, Any], float]:
    """Trains for so many updates; returns the result and the CPU-seconds that it took."""
    began = time.process_time()
    result = train(task, LOOP.model_copy(update={"steps": updates}), scenes, str(folder), seed)
    return result, time.process_time() - began


def measure(task: ClipTask, scenes: Scenes, held_out: Scenes, updates: int, folder: Path, seed: int) -> dict[str, Any]:
    """Trains for so many updates; returns their cost and the recall on the held-out pairs."""
    (operations,) = count_updates(task, LOOP, scenes, [0])
    trained, spent = train_for(task, scenes, updates, folder, seed)
    scorer = ClipScorer.load(str(folder / "export"))
    features = scorer.image_features(held_out.images), scorer.text_features(held_out.captions)
    found = measure_retrieval(*features, held_out.captions)
    recall = {k: (found[f"image_to_text_recall_at_{k}"] + found[f"text_to_image_recall_at_{k}"]) / 2 for k in (1, 5)}
    return {
        "updates": updates,
        "gflops_per_update": round(operations / 1e9, 3),
        "tflops": round(operations * updates / 1e12, 3),
        "cpu_seconds": round(spent, 1),
        "trained_parameters": trained["parameters"],
        "recall_at_1": round(recall[1], 4),
        "recall_at_5": round(recall[5], 4),
        "chance_at_1": round(float(found["chance_at_1"]), 4),
    }


def make_claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compares the means over the seeds with those of the demo's towers."""
    recall = {name: float(np.mean([row["recall_at_1"] for row in rows if row["towers"] == name])) for name in TOWERS}
    first, *others = TOWERS
    chance = float(np.mean([row["chance_at_1"] for row in rows]))
    claims = [make_claim(f"recall at 1 of {first}, over chance", recall[first] / chance, "x", 5.0)]
    claims += [
        make_claim(f"recall at 1 of {name}, over {first}", recall[name] / recall[first], "x", 1.0) for name in others
    ]
    return claims


if __name__ == "__main__":
    main()
