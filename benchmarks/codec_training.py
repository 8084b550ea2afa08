"""Loss curves of the demo's base on float32 and on int8 embeddings, with the same weights, batches and noise.

    python -m benchmarks.codec_training [ENCODER_FOLDER]

Scenes of the embedded corpus at 16x16 with their captions. The encoder is a folder, such as that of a finished demo run
(RUN/stages/encoder/<fingerprint>/export); by default a T5 of the demo's size with random weights. Plain AdamW, one
thread. A third run on float32 with other initial weights shows the difference between two runs that differ in the seed.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import numpy as np
import torch

from benchmarks.result import make_claim, write_result
from dataprep.images.resize import resize_square
from dataprep.synthetic.grammar import render_caption, sample_claim
from dataprep.synthetic.renderer import draw_scene
from dataprep.text.embedding_codec import dequantise, quantise
from dataprep.text.encoder import TextEncoder
from train.diffusion.config import DiffusionConfig
from train.loader.loader import Batch, Stream
from train.loader.sampler import SampleRandom
from train.tasks.diffusion import DiffusionTask
from train.tasks.diffusion_config import DiffusionStageConfig
from train.tasks.t5 import T5Task
from train.tasks.t5_config import T5TaskConfig

SCENES, STEPS, BATCH, WINDOW = 512, 120, 16, 20
RATE, WARMUP = 2e-3, 20


class Scenes(Stream):
    """Images with embeddings, in memory."""

    def __init__(self, pixels: np.ndarray, texts: list[np.ndarray]) -> None:
        super().__init__(len(pixels), 0, BATCH)
        longest = max(len(text) for text in texts)
        self.pixels = torch.from_numpy(pixels)
        self.text_BLD = torch.zeros(len(texts), longest, texts[0].shape[1])
        self.mask_BL = torch.zeros(len(texts), longest, dtype=torch.bool)
        for row, text in enumerate(texts):
            self.text_BLD[row, : len(text)] = torch.from_numpy(text)
            self.mask_BL[row, : len(text)] = True

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        at = torch.from_numpy(rows)
        return {"pixels_16": self.pixels[at], "text_BLD": self.text_BLD[at], "text_mask_BL": self.mask_BL[at]}


def train_model(data: Scenes, weights_seed: int) -> list[float]:
    """Returns the loss of each step."""
    config = DiffusionStageConfig(
        resolution=16, model="tiny-base", diffusion=DiffusionConfig(weighting="plain", log_snr_shift=-1.0)
    )
    task = DiffusionTask(config, data.text_BLD.shape[-1])
    torch.manual_seed(weights_seed)
    model = task.build()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.01)
    losses = []
    for step in range(STEPS):
        batch = data.batch(step)
        torch.manual_seed(step)
        loss, _ = task.loss(model, batch, SampleRandom(0, step, batch["index"].tolist()))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP)
        optimizer.step()
        losses.append(loss.item())
    return losses


def embed_captions(captions: list[str]) -> tuple[list[np.ndarray], str]:
    """Returns the captions' float32 embeddings, and what encoded them."""
    if len(sys.argv) > 1:
        return TextEncoder.from_folder(sys.argv[1]).encode(captions), "the folder given"
    torch.manual_seed(0)
    task = T5Task(T5TaskConfig(), captions)
    with tempfile.TemporaryDirectory(prefix="imagen-ray-bench-") as folder:
        task.export(folder, task.build().state_dict(), 0)
        return TextEncoder.from_folder(folder).encode(captions), "a T5 of the demo's size with random weights"


def main() -> None:
    """Draws and embeds scenes, trains three times, prints the curves and writes the result."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    scenes = [sample_claim(rng) for _ in range(SCENES)]
    pixels = np.stack([resize_square(draw_scene(scene, rng, 64), 16) for scene in scenes])
    plain, encoder = embed_captions([render_caption(scene) for scene in scenes])
    stored = [dequantise(*quantise(text, "int8")) for text in plain]
    curves = {
        "float32": train_model(Scenes(pixels, plain), 0),
        "int8": train_model(Scenes(pixels, stored), 0),
        "float32, other initial weights": train_model(Scenes(pixels, plain), 1),
    }
    rows: list[dict[str, Any]] = [{"encoder": encoder, "scenes": SCENES, "batch": BATCH, "steps": STEPS}]
    for start in range(0, STEPS, WINDOW):
        means = {name: round(float(np.mean(curve[start : start + WINDOW])), 5) for name, curve in curves.items()}
        rows.append({"steps": f"{start + 1} to {start + WINDOW}"} | means)
    for row in rows:
        print(row)
    late = {name: float(np.mean(curve[STEPS // 2 :])) for name, curve in curves.items()}
    difference = abs(late["int8"] / late["float32"] - 1)
    baseline = abs(late["float32, other initial weights"] / late["float32"] - 1)
    seeds = "that difference over the one of other initial weights"
    text = "relative difference of the loss on int8 and on float32, second half"
    claims = [make_claim(text, difference, "share", 0.02, at_most=True)]
    claims.append(make_claim(seeds, difference / baseline, "times", 1.0, at_most=True))
    write_result("codec_training", rows, claims, ("torch", "transformers"))


if __name__ == "__main__":
    main()
