"""A finished run without training: samples are drawings, some of another prompt, and CLIP is a mean of pixels."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from dataprep import storage
from dataprep.drawing import draw
from dataprep.grammar import Claim, parse
from dataprep.schema import write_table
from eval.clip import ClipScorer
from eval.composition import check
from eval.prompts import EvalPrompt, scene_prompts
from pipeline.config import ClusterConfig
from pipeline.context import Context
from pipeline.steps.judge import SCHEMA
from pipeline.store import Artifact, Manifest, Marker, Run, Shard, describe

SIZE = 32
LOG = b"""{"step": 1, "loss": 1.0, "validation_loss": 2.0}
{"step": 2, "loss": 0.6, "validation_loss": 0.5, "validation_loss_noise_1of4": 0.25}
{"step": 3, "loss": 0.4}
"""


# ---------------------------------------------------------------------------------------------- CLIP


class Towers:
    """Features are those that come in."""

    def encode_image(self, pixels_BD: torch.Tensor) -> torch.Tensor:
        return pixels_BD

    def encode_text(self, pixels_BD: torch.Tensor) -> torch.Tensor:
        return pixels_BD


def pixels(image: np.ndarray) -> torch.Tensor:
    """How far a small picture is from white."""
    small = cv2.resize(image, (4, 4), interpolation=cv2.INTER_AREA).astype(np.float32)
    return torch.from_numpy((255 - small).ravel() + 1)


def imagined(captions: Sequence[str]) -> torch.Tensor:
    """Features of a drawing of each caption; of one outside of the grammar, those of grey."""
    claims = [parse(caption) for caption in captions]
    grey = np.full((SIZE, SIZE, 3), 128, np.uint8)
    return torch.stack([pixels(draw(c, np.random.default_rng(9), SIZE) if c else grey) for c in claims])


def fake_clip(*_: Any, **__: Any) -> ClipScorer:
    return ClipScorer(Towers(), pixels, imagined)


# ---------------------------------------------------------------------------------------------- artifacts


def commit(
    run: Run, stage: str, inputs: Sequence[str], config: dict[str, Any], fingerprint: str = "f" * 20
) -> Artifact:
    """The manifest of what lies in the stage's folder, and the run's record of it."""
    folder = run.stage_folder(stage, fingerprint)
    names = [name for name in storage.list_files(folder) if name != "manifest.json"]
    record = run.read_record() or {"stages": {}, "config": {}, "seed": 0}
    entries = {name: record["stages"][name]["fingerprint"] for name in inputs}
    outputs = [describe(folder, name) for name in names]
    artifact = run.commit(Manifest(stage, fingerprint, entries, config, outputs, {}, 1.0, {}, {stage: fingerprint}))
    record["stages"][stage] = {"fingerprint": fingerprint}
    storage.write_json(run.path("run.json"), record)
    return artifact


def make_run(
    root: Path,
    right: float,
    guidance: float = 2.0,
    more: Sequence[EvalPrompt] = (),
    candidates: int = 2,
    count: int = 20,
) -> Run:
    """A run whose samples show what they should with probability ``right`` each."""
    run = Run(str(root))
    clip = Path(run.stage_folder("clip", "f" * 20))
    storage.write_json(str(clip / "model.json"), {"model": None, "pretrained": None})
    storage.write_bytes(str(clip / "export" / "clip.json"), b"{}")
    commit(run, "clip", [], {})
    _pack(Path(run.stage_folder("pack", "f" * 20)))
    commit(run, "pack", [], {"pack": {"resolutions": [SIZE]}})
    storage.write_bytes(run.stage_folder("train.base", "f" * 20) + "/log.jsonl", LOG)
    stage = {"resolution": SIZE, "low_resolution": None, "steps": 100}
    commit(run, "train.base", ["pack"], {"train.base": stage, "seed": 0})
    storage.write_json(run.stage_folder("encoder", "f" * 20) + "/model.json", {"model": "t5"})
    commit(run, "encoder", [], {})
    folder = Path(run.stage_folder("sample", f"{int(1000 * right):020x}"))
    folder.mkdir(parents=True)
    work = [*scene_prompts(count, 0), *more]
    for number, part in enumerate((work[: len(work) // 2], work[len(work) // 2 :])):
        rows = [row for item in part for row in sample_rows(item, right, candidates)]
        write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / f"{number:05d}.parquet", "samples")
    config = {"sample": {"stages": {"base": {"guidance": guidance}}, "candidates": candidates}, "seed": 0}
    commit(run, "sample", ["train.base", "clip"], config, folder.name)
    return run


def _pack(folder: Path) -> None:
    metadata = {b"encoding": b"raw", b"size": str(SIZE).encode()}
    fields = [pa.field(name, pa.string()) for name in ("key", "caption", "split")]
    schema = pa.schema([*fields, pa.field(f"pixels_{SIZE}", pa.binary(), metadata=metadata)])
    folder.mkdir(parents=True)
    for number in range(2):
        items = scene_prompts(40, 50 + number)[:40]
        images = [draw(item.claim, np.random.default_rng([number, i]), SIZE) for i, item in enumerate(items)]
        columns = {
            "key": [f"{number}-{index:04d}" for index in range(40)],
            "caption": [item.prompt for item in items],
            "split": ["train" if index % 4 == 3 else "validation" for index in range(40)],
            f"pixels_{SIZE}": [image.tobytes() for image in images],
        }
        write_table(pa.table(columns, schema=schema), folder / f"{number:05d}.parquet", "pack", row_group_size=16)


def sample_rows(item: EvalPrompt, right: float, candidates: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng([len(item.prompt), sum(map(ord, item.prompt))])
    other = scene_prompts(60, 77)
    rows, scorer = [], fake_clip()
    for index in range(candidates):
        claim = item.claim if item.claim and rng.random() < right else other[int(rng.integers(60))].claim
        assert isinstance(claim, Claim)
        image = draw(claim, rng, SIZE)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        rows.append(
            {
                "role": "evaluate",
                "prompt": item.prompt,
                "split": item.split,
                "language": item.language,
                "claim": item.claim.model_dump_json() if item.claim else None,
                "checks": json.dumps(check(image, item.claim)) if item.claim else None,
                "seed": 0,
                "index": index,
                "chosen": False,
                "stage": "base",
                "size": SIZE,
                "png": buffer.getvalue(),
                "clip_score": float(scorer.similarity([image], [item.prompt])[0]),
            }
        )
    max(rows, key=lambda row: row["clip_score"])["chosen"] = True
    return rows


# ---------------------------------------------------------------------------------------------- a stage at work


@dataclass
class InProcess(Context):
    """A context whose shards are worked on here, without Ray."""

    def map_shards(
        self, worker: type, arguments: dict[str, Any], shards: Sequence[Shard], *, subfolder: str = "", **_: float
    ) -> None:
        made = worker(**arguments)
        for shard in shards:
            with tempfile.TemporaryDirectory() as scratch:
                counters = made(shard, Path(scratch))
                outputs = [describe(scratch, name) for name in storage.list_files(scratch)]
                for output in outputs:
                    storage.publish(Path(scratch) / output.path, self.path(subfolder, output.path))
            self.finished.append(Marker(shard.id, "w", shard.sha256, outputs, counters, subfolder))
            for name, number in counters.items():
                self.counters[name] = self.counters.get(name, 0) + number


def context(run: Run, stage: str, config: dict[str, Any], inputs: Sequence[str]) -> InProcess:
    found = run.artifacts()
    folder = run.stage_folder(stage, "e" * 20)
    return InProcess(stage, config, {name: found[name] for name in inputs}, folder, run, ClusterConfig())
