"""CLIP scoring: ours against plain loops of open_clip's own calls, over the same tars, in one process.

    python -m benchmarks.score [PAIRS]

The model is open_clip's ViT-S-32-alt with random weights (which do not affect the cost): its smallest tower at 224
pixels, fast enough for a CPU. Images are 256-pixel JPEGs of the embedded corpus with its captions. Peers: the loop of
open_clip's README, one pair at a time; and the same in batches of 64.

What is counted: CPU-seconds of the process with all its threads, from a tar to the scores, one torch thread; runs are
interleaved, and the minimum of the rounds is taken. Ours is the function that the workers of the stage `score` call
for each shard, up to its Parquet file. Not counted on any side: imports and loading the model, and Ray. So these are
ratios of the work per pair, not of commands.
"""

from __future__ import annotations

import io
import resource
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.nn import functional

from benchmarks.result import make_claim, write_result
from dataprep.images.decode import decode_rgb, read_shard_images
from dataprep.io.model_imports import declare_torchvision_operators
from dataprep.io.parquet import read_table, write_table
from dataprep.synthetic.renderer import draw_scene
from eval.clip.score_shard import score_shard
from eval.clip.scorer import ClipScorer
from eval.sampling.prompts import scene_prompts

MODEL, BATCH, ROUNDS, PAIRS = "ViT-S-32-alt", 64, 8, 64
TARGET, EQUAL = 1.5, 1e-4


def main() -> None:
    """Measures, prints and writes the result."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS
    torch.set_num_threads(1)
    declare_torchvision_operators()
    import open_clip

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.manual_seed(0)
        torch.save(open_clip.create_model(MODEL, pretrained=None).state_dict(), folder / "weights.pt")
        tar, table = _write_shard(folder, pairs)
        model, _, transform = open_clip.create_model_and_transforms(MODEL, pretrained=str(folder / "weights.pt"))
        model.eval()
        tokenizer = open_clip.get_tokenizer(MODEL)
        scorer = ClipScorer.load({"model": MODEL, "pretrained": str(folder / "weights.pt")}, batch_size=BATCH)
        ways: dict[str, Callable[[], np.ndarray]] = {
            "open_clip, a pair at a time": lambda: _score_plainly(model, transform, tokenizer, tar, 1),
            f"open_clip, batches of {BATCH}": lambda: _score_plainly(model, transform, tokenizer, tar, BATCH),
            "imagen-ray": lambda: _score_ours(scorer, tar, table, folder / "scores.parquet"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        scores: dict[str, np.ndarray] = {}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                before = _read_cpu_seconds()
                scores[name] = way()
                seconds[name].append(_read_cpu_seconds() - before)
    single, batched, ours = ways
    rows: list[dict[str, Any]] = [
        {"way": name, "pairs": pairs, "cpu_seconds": round(min(spent), 3), "pairs_per_cpu_second": pairs / min(spent)}
        for name, spent in seconds.items()
    ]
    difference = max(float(np.abs(scores[ours] - scores[peer]).max()) for peer in (single, batched))
    claims = [
        make_claim(f"CPU-seconds of {batched} over ours", min(seconds[batched]) / min(seconds[ours]), "x", TARGET),
        make_claim(f"CPU-seconds of {single} over ours", min(seconds[single]) / min(seconds[ours]), "x", TARGET),
    ]
    # Not rounded: the difference is far below four decimals.
    claims.append(
        make_claim("largest difference of a score", difference, "cosine", EQUAL, at_most=True)
        | {"value": float(f"{difference:.2e}")}
    )
    write_result("score", rows, claims, ("torch", "open_clip_torch", "pillow"), model=MODEL, rounds=ROUNDS)


def _write_shard(folder: Path, pairs: int) -> tuple[Path, Path]:
    """Writes a download shard of drawings; returns its tar and its table."""
    prompts = scene_prompts(-(-pairs // 2), 0)[:pairs]
    keys = [f"{index:09d}" for index in range(pairs)]
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for key, item in zip(keys, prompts, strict=True):
            assert item.claim is not None
            buffer = io.BytesIO()
            Image.fromarray(draw_scene(item.claim, np.random.default_rng(int(key)), 256)).save(
                buffer, "JPEG", quality=95
            )
            info = tarfile.TarInfo(f"{key}.jpg")
            info.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(info, buffer)
    table = pa.table({"key": keys, "caption": [item.prompt for item in prompts]})
    write_table(table, folder / "00000.parquet", "download")
    return folder / "00000.tar", folder / "00000.parquet"


def _score_plainly(model: Any, transform: Any, tokenizer: Any, tar: Path, batch: int) -> np.ndarray:
    """Scores as open_clip's README does: open, transform, encode both, normalise, multiply; returns float32 (N,)."""
    captions = read_table(tar.with_suffix(".parquet"), "download", ["caption"])["caption"].to_pylist()
    found = []
    for start, images in _read_batches(tar, transform, batch):
        with torch.no_grad():
            image_BD = functional.normalize(model.encode_image(torch.stack(images)), dim=-1)
            text_BD = functional.normalize(model.encode_text(tokenizer(captions[start : start + len(images)])), dim=-1)
        found.append((image_BD * text_BD).sum(-1).numpy())
    return np.concatenate(found)


def _read_batches(tar: Path, transform: Any, batch: int) -> Iterator[tuple[int, list[torch.Tensor]]]:
    images: list[torch.Tensor] = []
    start = 0
    for _, data in read_shard_images(tar):
        images.append(transform(Image.open(io.BytesIO(data))))
        if len(images) == batch:
            yield start, images
            start, images = start + batch, []
    if images:
        yield start, images


def _score_ours(scorer: ClipScorer, tar: Path, table: Path, out: Path) -> np.ndarray:
    """Scores as the worker of the stage `score` does; returns float32 (N,)."""
    score_shard(read_shard_images(tar), table, out, scorer, decode=decode_rgb)
    return np.asarray(read_table(out, "scores")["clip_similarity"].to_numpy())


def _read_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
