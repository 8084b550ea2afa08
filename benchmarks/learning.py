"""The demo's base against the U-Nets of imagen-pytorch and diffusers: what each learns in the same CPU-seconds.

    pip install --no-deps --target .peers/unets imagen-pytorch==2.1.0 diffusers==0.42.1 accelerate beartype \
        ema-pytorch kornia kornia-rs pytorch-warmup sentencepiece
    PYTHONPATH=.peers/unets python -m benchmarks.learning [--seconds 240] [--seeds 0 1 2] [--folder runs/learning]

Scenes at 16x16 with the embeddings of one text encoder, one thread. The peers' networks have about as many parameters
as our preset tiny-base; the demo's is a smaller variant of it, and its size is part of the recipe that is compared.
They are trained by a plain loop, with our noise levels, loss, learning-rate schedule and EMA, at a rate that is not
tuned. Ours is trained by the demo's config and our trainer in `SHARES` of the same seconds, each a whole training
with its own learning-rate decay. How many CPU-seconds ours needs for a peer's final error is read off between these,
on a logarithmic scale of both.

The error is the mean squared error of the clean image for held-out images, averaged over four noise levels. What is
counted: CPU-seconds of training, batches included. Not counted: imports, corpus, text encoder, judging. Rows go to
``--folder`` as they are finished, and a finished one is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ablation import RECIPE, mix_config
from benchmarks.lab import JUDGE_SEED, Laboratory, judge_base, measure_errors, open_base, scale_length
from benchmarks.learning_peers import BATCH, Diffusers, ImagenPytorch, train_plainly
from benchmarks.result import make_claim, write_result
from benchmarks.train_step import import_peers
from eval.sampling.cascade import Cascade
from eval.sampling.config import SamplingConfig
from train.loader.loader import TRAIN, Loader
from train.loader.reader import Reader
from train.loader.shard_index import ShardIndex
from train.tasks.diffusion import DiffusionTask, train_diffusion
from train.tasks.diffusion_config import DiffusionTrainingConfig

PEERS = {"imagen-pytorch": ImagenPytorch, "diffusers": Diffusers}
OURS = "imagen-ray"
SHARES = (0.25, 0.5, 1.0)  # of the seconds, of ours
TOKENS = 64  # at most, of a caption
PROBE = 100  # updates that say how long one takes
Row = dict[str, Any]


class Course:
    """Data, text encoder and config of a seed, which all sides share."""

    def __init__(self, folder: Path, seed: int, prompts: int) -> None:
        config = mix_config(RECIPE)
        self.seed, self.prompts, self.folder = seed, prompts, folder / f"seed-{seed}"
        self.config = config.cascade()["base"]
        prepared = Laboratory(folder, 0.0, prompts).prepare(config, seed, self.folder)
        self.index, self.encoder, self.text_dim = prepared.index_path, prepared.encoder, prepared.text_dim
        self.settings = config.sample.stages.get("base", SamplingConfig())

    def train_ours(self, seconds: float) -> tuple[Cascade, Row]:
        """Trains the demo's base for about so many CPU-seconds."""
        steps = max(1, int(seconds / self.update_seconds))
        return self._train(scale_length(self.config, steps), f"{seconds:g}")

    @cached_property
    def update_seconds(self) -> float:
        """CPU-seconds of an update of ours, by a short training: half-size updates have their share in it."""
        row = self._train(scale_length(self.config, PROBE), "probe")[1]
        return float(row["cpu_seconds"]) / PROBE

    def _train(self, config: DiffusionTrainingConfig, name: str) -> tuple[Cascade, Row]:
        folder = self.folder / f"ours-{name}"
        shutil.rmtree(folder, ignore_errors=True)  # of a training that was interrupted: it would go on
        began = time.process_time()
        result = train_diffusion(self.index, False, config, str(folder), self.seed)
        row = {"steps": config.steps, "parameters": result["parameters"], "cpu_seconds": time.process_time() - began}
        return open_base(folder / "export", self.encoder, self.config.resolution, self.settings), row

    def train_peer(self, name: str, seconds: float) -> tuple[Cascade, Row]:
        """Trains a peer's network by the plain loop for so many CPU-seconds."""
        config = self.config.model_copy(update={"batch_size": BATCH, "half_size_steps": 0, "token_drop": 0.0})
        task = DiffusionTask(config, self.text_dim)
        torch.manual_seed(self.seed)
        network = PEERS[name](config.denoiser_config(self.text_dim), TOKENS)
        loader = Loader.from_reader(Reader(ShardIndex.read(self.index), config.data), TRAIN, self.seed, BATCH)
        trained = train_plainly(network, task, loader, config, seconds)
        # The sampler, the prompts and their encoder are those of a cascade of ours, whose network is replaced.
        cascade = self._train(scale_length(self.config, 1), "shell")[0]
        stages = [replace(cascade.stages[0], model=trained.pop("network"))]
        return cascade.with_stages(stages), trained | {"parameters": sum(p.numel() for p in network.parameters())}

    def judge(self, cascade: Cascade) -> Row:
        """Returns the errors by noise level, their mean for held-out images, and the accuracy of samples."""
        row = measure_errors(cascade, self.index) | judge_base(cascade, self.prompts, self.seed + JUDGE_SEED)
        return row | {"error": float(np.mean(list(row["error_validation"].values())))}


def measure(course: Course, side: str, seconds: float, share: float) -> Row:
    """Returns the row of a side, trained in a share of the seconds."""
    ours = side == OURS
    cascade, row = course.train_ours(seconds * share) if ours else course.train_peer(side, seconds * share)
    return {"side": side, "seed": course.seed, "share": share, "seconds": seconds} | row | course.judge(cascade)


def seconds_to_reach(rows: Sequence[Mapping[str, Any]], error: float) -> float:
    """Returns the CPU-seconds at which ``rows``, of one side in several lengths, reach an error.

    Between two lengths by a straight line in the logarithms; infinite if none reaches it, and the shortest length's if
    all do.
    """
    ordered = sorted(rows, key=lambda row: row["cpu_seconds"])
    if ordered[0]["error"] <= error:
        return float(ordered[0]["cpu_seconds"])
    for one, other in pairwise(ordered):
        if other["error"] <= error:
            share = np.log(one["error"] / error) / np.log(one["error"] / other["error"])
            return float(one["cpu_seconds"] * (other["cpu_seconds"] / one["cpu_seconds"]) ** share)
    return float("inf")


def make_claims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the claims: seconds that a peer took over ours to the same error, and accuracies in the same seconds."""
    claims, seeds = [], sorted({row["seed"] for row in rows})
    for peer in PEERS:
        ratios = []
        for seed in seeds:
            own = [row for row in rows if row["seed"] == seed]
            other = next(row for row in own if row["side"] == peer)
            mine = [row for row in own if row["side"] == OURS]
            ratios.append(other["cpu_seconds"] / seconds_to_reach(mine, other["error"]))
        text = f"CPU-seconds of {peer}'s U-Net over ours, to the same held-out error: mean of {len(seeds)} seeds"
        claims.append(make_claim(text, float(np.mean(ratios)), "times", 1.5))
        claims.append(make_claim(f"{text.partition(':')[0]}: least", min(ratios), "times", 1.0))
    whole = {side: [row for row in rows if row["side"] == side and row["share"] == 1] for side in (OURS, *PEERS)}
    for split, title in (("seen", "combinations seen"), ("heldout", "combinations held out")):
        means = {side: float(np.mean([row[split]["all"] for row in found])) for side, found in whole.items()}
        best = max(means[peer] for peer in PEERS)
        text = f"all attributes at once, {title}, in the same CPU-seconds: ours less the better peer's"
        claims.append(make_claim(text, means[OURS] - best, "share", 0.0))
    return claims


def main() -> None:
    """Runs what is not there yet, writes the result and prints its claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240, help="CPU-seconds of a training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=150, help="prompts to judge, of each split")
    parser.add_argument("--folder", type=Path, default=Path("runs/learning"), help="where rows and models are kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    import_peers(PEERS)
    rows = []
    for seed in given.seeds:
        course = Course(given.folder, seed, given.prompts)
        for side, share in [*((peer, 1.0) for peer in PEERS), *((OURS, share) for share in SHARES)]:
            path = given.folder / f"row-{side}-{seed}-{share:g}-{given.seconds:g}-{given.prompts}.json"
            if not path.exists():
                path.write_text(json.dumps(measure(course, side, given.seconds, share)))
            rows.append(json.loads(path.read_text()))
            shown = {name: rows[-1][name] for name in ("side", "seed", "share", "steps", "cpu_seconds", "error")}
            print(json.dumps(shown | {split: rows[-1][split]["all"] for split in ("seen", "heldout")}), flush=True)
    write_result("learning", rows, make_claims(rows), ("torch", "diffusers", "imagen-pytorch"))


if __name__ == "__main__":
    main()
