"""The stage that draws: prompts through the trained cascade, N a prompt, of which CLIP picks the best."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from dataprep.grammar import Claim
from dataprep.schema import write_table
from eval.cascade import Samples
from eval.clip import ClipScorer
from eval.composition import check
from eval.prompts import EvalPrompt, read_prompts, read_protocol, scene_prompts
from eval.settings import CascadeConfig, SamplingConfig
from pipeline.config import DTYPE, MAX_LENGTH, RunConfig, SampleConfig
from pipeline.context import Context
from pipeline.sampling import cascade_config, open_cascade
from pipeline.steps.models import clip_spec, device, encoder_spec
from pipeline.store import Shard

SHOW, EVALUATE = "show", "evaluate"
SCHEMA = pa.schema(
    {
        "role": pa.string(),  # "show": every stage of the cascade; "evaluate": the judged stage alone
        "prompt": pa.string(),
        "split": pa.string(),  # "seen", "heldout" or "user"
        "language": pa.string(),
        "claim": pa.string(),  # JSON of what the prompt claims; null where it is not of the grammar
        "checks": pa.string(),  # JSON {attribute: right?} by the composition checker; null without a claim
        "seed": pa.int64(),
        "index": pa.int32(),  # candidate number of this prompt
        "chosen": pa.bool_(),  # the best of the candidates by CLIP
        "stage": pa.string(),
        "size": pa.int32(),
        "png": pa.binary(),
        "clip_score": pa.float32(),
    }
)


def prompt_files(config: RunConfig) -> list[str]:
    """The user's prompt files, checked."""
    sample = config.sample
    if sample.prompts_file is not None:
        read_prompts(sample.prompts_file)
    if sample.evaluate_prompts is not None:
        read_protocol(sample.evaluate_prompts, sample.evaluate, config.seed)
    return [path for path in (sample.prompts_file, sample.evaluate_prompts) if path is not None]


def prompts(config: SampleConfig, source: str, seed: int) -> list[tuple[str, EvalPrompt]]:
    """(role, prompt) in the order in which they are drawn: what to show, then what to judge."""
    shown = [EvalPrompt(prompt, "user", "", None) for prompt in config.prompts]
    shown += read_prompts(config.prompts_file) if config.prompts_file else []
    judged: list[EvalPrompt] = []
    if source == "scenes":
        each = config.evaluate // 2
        judged = scene_prompts(each, seed) if each else []
        shown += scene_prompts(max(1, config.show // 2), seed + 1)[: config.show] if config.show else []
    else:
        judged = shown
    if config.evaluate_prompts:
        judged = read_protocol(config.evaluate_prompts, config.evaluate, seed)
    return [(SHOW, prompt) for prompt in shown] + [(EVALUATE, prompt) for prompt in judged]


class SampleWorker:
    """Draws a chunk of prompts."""

    def __init__(self, cascade: CascadeConfig, clip: Any, config: SampleConfig, work: list[Any], seed: int) -> None:
        with open_cascade(cascade, device()) as self.cascade:
            self.scorer = ClipScorer.load(clip, device())
        self.config, self.work, self.seed = config, work, seed

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        """One Parquet file of samples."""
        size = self.config.prompts_per_shard
        chunk = self.work[shard.id * size : (shard.id + 1) * size]
        rows: list[dict[str, Any]] = []
        for role in (SHOW, EVALUATE):
            if items := [prompt for kind, prompt in chunk if kind == role]:
                rows += self._draw(role, items)
        write_table(pa.Table.from_pylist(rows, schema=SCHEMA), out / f"{shard.id:05d}.parquet", "samples")
        return {"prompts": len(chunk), "images": len(rows)}

    def _draw(self, role: str, items: list[EvalPrompt]) -> list[dict[str, Any]]:
        """Rows of one role: what is shown has every stage of the best candidate, what is judged every candidate."""
        candidates = self.config.candidates
        last = self.config.evaluate_at if role == EVALUATE else None
        texts = [item.prompt for item in items]
        samples = self.cascade(texts, num=candidates, seed=self.seed, stop_at=last, batch_size=self.config.batch_size)
        pictures = [np.asarray(image) for image in samples.images]
        scores = self.scorer.similarity(pictures, samples.prompts).reshape(len(items), candidates)
        rows = []
        for number, item in enumerate(items):
            best = int(scores[number].argmax())
            for index in range(candidates):
                if role == SHOW and index != best:
                    continue
                position = number * candidates + index
                common = self._common(role, item, index, index == best, float(scores[number, index]))
                stages = (
                    self._ladder(samples, position) if role == SHOW else {self._last(last): samples.images[position]}
                )
                rows += [common | _picture(stage, image, item.claim) for stage, image in stages.items()]
        return rows

    def _ladder(self, samples: Samples, position: int) -> dict[str, Image.Image]:
        return {stage: images[position] for stage, images in samples.by_stage.items()}

    def _last(self, stop_at: str | None) -> str:
        return stop_at or self.cascade.stages[-1].entry.name

    def _common(self, role: str, item: EvalPrompt, index: int, chosen: bool, score: float) -> dict[str, Any]:
        claim = item.claim.model_dump_json() if item.claim else None
        return {
            "role": role,
            "prompt": item.prompt,
            "split": item.split,
            "language": item.language,
            "claim": claim,
            "seed": self.seed,
            "index": index,
            "chosen": chosen,
            "clip_score": score,
        }


def _picture(stage: str, image: Image.Image, claim: Claim | None) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    checks = json.dumps(check(np.asarray(image), claim)) if claim is not None else None
    return {"stage": stage, "size": image.width, "png": buffer.getvalue(), "checks": checks}


def sample(ctx: Context) -> None:
    """Prompts through the cascade; N a prompt, of which CLIP picks the best."""
    config: SampleConfig = ctx.config["sample"]
    cascade = trained_cascade(ctx, config.stages)
    cascade = cascade.model_copy(update={"watermark": config.watermark})
    work = prompts(config, ctx.config["listing.source"], ctx.config["seed"])
    arguments = {"cascade": cascade, "clip": clip_spec(ctx.inputs["clip"]), "config": config, "work": work}
    shards = [Shard(index, {}) for index in range(-(-len(work) // config.prompts_per_shard))]
    ctx.map_shards(SampleWorker, arguments | {"seed": ctx.config["seed"]}, shards, on_gpu=True)


def trained_cascade(ctx: Context, sampling: Mapping[str, SamplingConfig]) -> CascadeConfig:
    """The cascade of the training stages among the stage's inputs; prompts are read as captions were (`TEXT_KEYS`)."""
    trained = {}
    for name, artifact in ctx.inputs.items():
        if name.startswith("train."):
            described = artifact.manifest.config[name]
            trained[name.removeprefix("train.")] = (
                artifact.path("export"),
                described["resolution"],
                described["low_resolution"],
            )
    text = {"max_length": ctx.config[MAX_LENGTH], "encoder_dtype": ctx.config[DTYPE]}
    return cascade_config(trained, sampling, encoder_spec(ctx.inputs["encoder"]), **text)
