"""Bits per dimension of held-out images after training a base by the variational bound, against the plain loss.

    python -m benchmarks.bound_training runs/demo [--seeds 0 1 2] [--steps 600]

The demo's base at its resolution, on the pack and embeddings of a finished demo run, from random weights, with the same
batches, noise and updates for both: `weighting: elbo` and `weighting: plain`, on the cosine schedule without a shift,
whose range both are rated over. The figure is the bound on validation images, given their captions, of the EMA weights
(`eval.metrics.likelihood`), whose parts are beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.result import make_claim, write_result
from dataprep.io.pack_format import pixels_column
from dataprep.text.encoder import TextEncoder
from eval.metrics.config import LikelihoodConfig
from eval.metrics.likelihood import measure_likelihood
from eval.sampling.config import StageEntry
from eval.sampling.stage_sampler import LoadedStage, pad_text
from pipeline.stages.image_features import read_packed_images
from pipeline.stages.text_encoder import encoder_location
from pipeline.stages.train import TrainStageConfig
from pipeline.store.artifact import Artifact
from pipeline.store.run import Run
from train.diffusion.config import DiffusionConfig
from train.diffusion.objective import to_model_range
from train.loader.shard_index import index_shards
from train.models.export import load_stage
from train.tasks.diffusion import train_diffusion
from train.tasks.diffusion_config import DiffusionTrainingConfig

WEIGHTINGS = ("plain", "elbo")
HELD_OUT = LikelihoodConfig(images=256, batch_size=64, levels=32, steps=0)


class Bench:
    """What a finished demo run has: its base's config, pack, embeddings and encoder."""

    def __init__(self, demo: str) -> None:
        self.artifacts: dict[str, Artifact] = Run(demo).artifacts()
        self.config = TrainStageConfig.from_manifest(self.artifacts["train.base"].manifest).train
        pairs = (
            pair for path in self.artifacts["pack"].files() for pair in read_packed_images(path, self.config.resolution)
        )
        _, images, captions = zip(*islice(pairs, HELD_OUT.images), strict=True)
        self.x0_BCHW = to_model_range(torch.from_numpy(np.stack(images)))
        self.texts = TextEncoder.from_folder(encoder_location(self.artifacts["encoder"])).encode(captions)

    def write_index(self, folder: Path) -> str:
        """Writes the index of the training data; returns its path."""
        files = (self.artifacts["pack"].files(), self.artifacts["embed"].files())
        index = str(folder / "index.parquet")
        index_shards(*files, (pixels_column(self.config.resolution),)).write(index)
        return index

    def stage_config(self, weighting: str, steps: int) -> DiffusionTrainingConfig:
        """Returns the demo's base with another weighting, for fewer updates."""
        changes: dict[str, Any] = {
            "steps": steps,
            "warmup_steps": min(100, steps // 5),
            "sample_every": 0,
            "validate_every": 0,
        }
        changes |= {"checkpoint_every": steps, "zero_stage": 0, "diffusion": DiffusionConfig(weighting=weighting)}
        return DiffusionTrainingConfig.model_validate(self.config.model_dump() | changes)

    def measure(self, folder: str, config: DiffusionTrainingConfig) -> dict[str, float]:
        """Returns the mean bits of the held-out images, by part."""
        model, settings = load_stage(folder)
        entry = StageEntry(name="base", resolution=config.resolution, path=folder)
        stage, bits = LoadedStage(entry, model, DiffusionConfig(**settings["diffusion"])), []
        for start in range(0, len(self.texts), HELD_OUT.batch_size):
            part = slice(start, start + HELD_OUT.batch_size)
            bits += measure_likelihood(stage, pad_text(self.texts[part]), self.x0_BCHW[part], None, HELD_OUT, start)
        quarters = ("noise 4of4", "noise 3of4", "noise 2of4", "noise 1of4")  # as a stage logs them: 1 is least noise
        found = {name: float(np.mean([image[name] for image in bits])) for name in bits[0]}
        levels = np.array_split([value for name, value in found.items() if name.startswith("log-SNR")], 4)
        return {
            "bits": found["bound"],
            "prior": found["prior"],
            "reconstruction": found["reconstruction"],
            **{name: float(part.sum()) for name, part in zip(quarters, levels, strict=True)},
        }


def main() -> None:
    """Trains with both weightings, prints the bits, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", help="a finished run of configs/demo.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600, help="updates of each training")
    given = parser.parse_args()
    bench, rows = Bench(given.demo), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="imagen-ray-bench-") as scratch:
        index = bench.write_index(Path(scratch))
        for seed in given.seeds:
            for weighting in WEIGHTINGS:
                folder, config = Path(scratch) / f"{weighting}-{seed}", bench.stage_config(weighting, given.steps)
                began = time.process_time()
                train_diffusion(index, False, config, str(folder), seed)
                row = {"weighting": weighting, "seed": seed, "cpu_seconds": round(time.process_time() - began, 1)}
                bits = bench.measure(str(folder / "export"), config)
                rows.append(row | {name: round(value, 4) for name, value in bits.items()})
                print(rows[-1], flush=True)
    plain, bound = (np.array([row["bits"] for row in rows if row["weighting"] == name]) for name in WEIGHTINGS)
    claims = [
        make_claim(
            "bits per dimension with plain less those with elbo, mean of the seeds", (plain - bound).mean(), "bits", 0
        ),
        make_claim("the least such difference of a seed", (plain - bound).min(), "bits", 0),
    ]
    write_result("bound_training", rows, claims, ("torch",), steps=given.steps, images=len(bench.texts))


if __name__ == "__main__":
    main()
