"""A finished run without training: samples are drawings, some of another prompt, and CLIP sees small images."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from dataprep.io import storage
from dataprep.io.keys import sample_key
from dataprep.io.parquet import write_table
from dataprep.synthetic.grammar import Claim, parse_caption
from dataprep.synthetic.renderer import draw_scene
from eval.clip.scorer import ClipScorer
from eval.metrics.composition import check_image
from eval.metrics.config import EvaluateConfig
from eval.metrics.samples_table import EVALUATE, JudgedSample, write_samples
from eval.sampling.prompts import EvalPrompt, scene_prompts
from pipeline.runtime.config import ClusterConfig
from pipeline.runtime.context import Context
from pipeline.runtime.shard_stream import ShardFeed
from pipeline.runtime.shard_worker import ShardTask
from pipeline.stages.evaluate import EvaluateInputs, EvaluateStageConfig
from pipeline.store.artifact import Artifact, Manifest, Shard, describe_file
from pipeline.store.markers import Marker
from pipeline.store.run import Run

SIZE = 32
LOG = b"""{"step": 1, "loss": 1.0, "validation_loss": 2.0}
{"step": 2, "loss": 0.6, "validation_loss": 0.5, "validation_loss_noise_1of4": 0.25}
{"step": 3, "loss": 0.4}
"""


# ---------------------------------------------------------------------------------------------- CLIP


class Towers:
    """Features are the input itself."""

    def encode_image(self, pixels_BD: torch.Tensor) -> torch.Tensor:
        return pixels_BD

    def encode_text(self, pixels_BD: torch.Tensor) -> torch.Tensor:
        return pixels_BD


def pixels(image: np.ndarray) -> torch.Tensor:
    """Returns the distance from white of each pixel of a 4 x 4 image."""
    small = cv2.resize(image, (4, 4), interpolation=cv2.INTER_AREA).astype(np.float32)
    return torch.from_numpy((255 - small).ravel() + 1)


def tokenize(captions: Sequence[str]) -> torch.Tensor:
    """Returns the features of a drawing of each caption; those of grey for a caption outside of the grammar."""
    claims = [parse_caption(caption) for caption in captions]
    grey = np.full((SIZE, SIZE, 3), 128, np.uint8)
    return torch.stack([pixels(draw_scene(c, np.random.default_rng(9), SIZE) if c else grey) for c in claims])


def draw_caption(caption: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """Returns a drawing of a caption of the grammar, uint8 (size, size, 3)."""
    claim = parse_caption(caption)
    assert claim is not None
    return draw_scene(claim, rng, size)


def fake_clip(*_: Any, **__: Any) -> ClipScorer:
    return ClipScorer(Towers(), pixels, tokenize)


# ---------------------------------------------------------------------------------------------- artifacts


def commit(
    run: Run, stage: str, inputs: Sequence[str], config: dict[str, Any], fingerprint: str = "f" * 20
) -> Artifact:
    """Commits what is in the stage's folder to the run."""
    folder = run.stage_folder(stage, fingerprint)
    names = [name for name in storage.list_files(folder) if name != "manifest.json"]
    record = run.read_record() or {"stages": {}, "config": {}, "seed": 0}
    entries = {name: record["stages"][name]["fingerprint"] for name in inputs}
    outputs = [describe_file(folder, name) for name in names]
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
    """Returns a run whose samples show their prompt with probability ``right`` each."""
    run = Run(str(root))
    clip = Path(run.stage_folder("clip", "f" * 20))
    storage.write_json(str(clip / "model.json"), {"model": None, "pretrained": None})
    storage.write_bytes(str(clip / "export" / "clip.json"), b"{}")
    commit(run, "clip", [], {})
    _pack(Path(run.stage_folder("pack", "f" * 20)))
    commit(run, "pack", [], {"pack": {"resolutions": [SIZE]}})
    storage.write_bytes(run.stage_folder("train.base", "f" * 20) + "/log.jsonl", LOG)
    stage = {"resolution": SIZE, "low_resolution": None, "model": "micro-base", "steps": 100, "batch_size": 4}
    commit(run, "train.base", ["pack"], {"train": stage, "mix": {}, "seed": 0})
    storage.write_json(run.stage_folder("encoder", "f" * 20) + "/model.json", {"model": "t5"})
    commit(run, "encoder", [], {})
    folder = Path(run.stage_folder("sample", f"{int(1000 * right):020x}"))
    folder.mkdir(parents=True)
    work = [*scene_prompts(count, 0), *more]
    for number, part in enumerate((work[: len(work) // 2], work[len(work) // 2 :])):
        samples = [sample for item in part for sample in make_samples(item, right, candidates)]
        write_samples(samples, str(folder / f"{number:05d}.parquet"))
    config: dict[str, Any] = {"sample": {"stages": {"base": {"guidance": guidance}}, "candidates": candidates}}
    config |= {"seed": 0, "listing.source": "scenes", "embed.max_length": 256, "embed.dtype": "float32"}
    config |= {"embed.pad": False, "embed.lowercase": False}
    commit(run, "sample", ["train.base", "clip"], config, folder.name)
    return run


def _pack(folder: Path) -> None:
    metadata = {b"encoding": b"raw", b"size": str(SIZE).encode()}
    fields = [pa.field(name, pa.string()) for name in ("key", "caption", "split")]
    schema = pa.schema([*fields, pa.field(f"pixels_{SIZE}", pa.binary(), metadata=metadata)])
    folder.mkdir(parents=True)
    for number in range(2):
        items = scene_prompts(40, 50 + number)[:40]
        claims = [item.claim for item in items if item.claim is not None]
        images = [draw_scene(claim, np.random.default_rng([number, i]), SIZE) for i, claim in enumerate(claims)]
        columns = {
            "key": [sample_key(number, index) for index in range(40)],
            "caption": [item.prompt for item in items],
            "split": ["train" if index % 4 == 3 else "validation" for index in range(40)],
            f"pixels_{SIZE}": [image.tobytes() for image in images],
        }
        write_table(pa.table(columns, schema=schema), folder / f"{number:05d}.parquet", "pack", row_group_size=16)


def make_samples(item: EvalPrompt, right: float, candidates: int) -> list[JudgedSample]:
    """Returns the candidates of a prompt; each shows it with probability ``right``, else another prompt."""
    rng = np.random.default_rng([len(item.prompt), sum(map(ord, item.prompt))])
    other = scene_prompts(60, 77)
    samples, scorer = list[JudgedSample](), fake_clip()
    for index in range(candidates):
        claim = item.claim if item.claim and rng.random() < right else other[int(rng.integers(60))].claim
        assert isinstance(claim, Claim)
        image = draw_scene(claim, rng, SIZE)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        samples.append(
            JudgedSample(
                role=EVALUATE,
                prompt=item.prompt,
                split=item.split,
                language=item.language,
                claim=item.claim,
                checks=check_image(image, item.claim) if item.claim else None,
                seed=0,
                index=index,
                chosen=False,
                stage="base",
                size=SIZE,
                clip_score=float(scorer.similarity([image], [item.prompt])[0]),
                png=buffer.getvalue(),
            )
        )
    best = max(samples, key=lambda sample: sample.clip_score)
    return [replace(sample, chosen=sample is best) for sample in samples]


# ---------------------------------------------------------------------------------------------- a stage at work


@dataclass
class InProcess(Context[EvaluateStageConfig, EvaluateInputs]):
    """A context that runs shard workers in this process, without Ray."""

    def map_shards(
        self,
        worker: type[Any],
        arguments: Mapping[str, Any],
        shards: Sequence[Shard] | ShardFeed,
        *,
        subfolder: str = "",
        on_gpu: bool = False,
        keep_workers: bool = False,
        is_final: Callable[[Marker], bool] = lambda marker: True,
    ) -> None:
        made = worker(**arguments)
        for shard in shards.take() if isinstance(shards, ShardFeed) else shards:
            with tempfile.TemporaryDirectory() as scratch:
                counters = made(ShardTask(shard.id, shard.files, Path(scratch)))
                outputs = [describe_file(scratch, name) for name in storage.list_files(scratch)]
                for output in outputs:
                    storage.publish(Path(scratch) / output.path, self.path(subfolder, output.path))
            self.finished.append(Marker(shard.id, "w", shard.sha256, outputs, counters, subfolder))
            for name, number in counters.items():
                self.counters[name] = self.counters.get(name, 0) + number


def make_evaluate_context(run: Run, config: EvaluateConfig, **looked_for: Any) -> InProcess:
    """Returns the context of the stage `evaluate` on a run of `make_run`; the audit looks for ``looked_for``."""
    found = run.artifacts()
    names = ("sample", "clip", "pack", *(("train.base", "encoder") if config.sweep or config.likelihood else ()))
    inputs = EvaluateInputs.collect({name: found[name] for name in names})
    text: dict[str, Any] = {"max_length": 256, "dtype": "float32", "pad": False, "lowercase": False}
    audit: dict[str, Any] = {"faces": None, "text": None, "heads": {}, "labels": {}}
    stage_config = EvaluateStageConfig(evaluate=config, **text, **(audit | looked_for))
    return InProcess("evaluate", stage_config, inputs, run.stage_folder("evaluate", "e" * 20), run, ClusterConfig())
