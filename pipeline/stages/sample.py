"""Stage `sample`: prompts through the trained cascade; CLIP picks the best of N candidates per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dataprep.io.config import Config
from eval.captioning.config import ExpandConfig
from eval.sampling.config import CascadeConfig, FitConfig, SamplingConfig
from eval.sampling.prompt_files import read_prompts, read_protocol
from eval.sampling.prompts import EvalPrompt, clean_prompt, scene_prompts
from pipeline.runtime.context import Context
from pipeline.runtime.shard_worker import ShardTask
from pipeline.stages.base import Placement, RowBalance, StageConfig, StageInputs, StageType, always, config_key
from pipeline.stages.clip import ClipSpec, read_clip_spec
from pipeline.stages.guides import list_guide_files
from pipeline.stages.model_files import TUNED, list_model_files, resolve_model_name
from pipeline.stages.schedule import place_levels
from pipeline.stages.trained_cascade import build_cascade, trained_cascade
from pipeline.store.artifact import Artifact, Shard

if TYPE_CHECKING:
    from eval.metrics.samples_table import JudgedSample, Role
    from pipeline.config import RunConfig


class SampleConfig(Config):
    """What is generated once the cascade is trained."""

    stages: dict[str, SamplingConfig] = Field(default_factory=dict, description="sampler settings by cascade stage")
    fit: FitConfig | None = Field(
        None, description="fit noise levels to trained stages, for few evaluations; see docs/sampling.md"
    )
    guides: dict[str, str] = Field(
        default_factory=dict,
        description="weaker network by cascade stage, which its guidance goes away from (autoguidance): RUN, "
        "RUN@FINGERPRINT, RUN:STAGE or an export",
    )
    prompts: list[str] = Field(default_factory=list, description="prompts to show through the whole cascade")
    prompts_file: str | None = Field(None, description="more of them: a file of prompts; see docs/metrics.md")
    show: int = Field(8, ge=0, description="prompts of the embedded corpus to show through the whole cascade")
    evaluate: int = Field(160, ge=0, description="prompts of the embedded corpus to generate for evaluation")
    evaluate_prompts: str | None = Field(
        None, description="evaluate on these: a file of prompts, at most `evaluate` of them; see docs/metrics.md"
    )
    evaluate_at: str | None = Field(None, description="cascade stage whose output is judged; default: the last")
    candidates: int = Field(1, ge=1, description="images per prompt, of which CLIP picks the best")
    batch_size: int = Field(16, ge=1, description="images generated at a time")
    watermark: str | None = Field(None, description="text of an invisible watermark, for images of 32 pixels or more")
    prompts_per_shard: int = Field(32, ge=1, description="prompts per unit of work")
    expand: ExpandConfig | None = Field(
        None, description="a language model that writes every prompt out before it is drawn; see docs/captions.md"
    )


class SampleStageConfig(StageConfig):
    """What the stage sees of the config. Prompts are encoded as captions are, see `embed`."""

    sample: SampleConfig
    source: str = config_key("listing.source")
    max_length: int = config_key("embed.max_length")
    dtype: str = config_key("embed.dtype")
    pad: bool = config_key("embed.pad")
    lowercase: bool = config_key("embed.lowercase")
    seed: int


@dataclass(frozen=True, kw_only=True)
class SampleInputs(StageInputs):
    """The cascade, the text encoder, the CLIP that chooses, and fitted noise levels, if asked for."""

    train: dict[str, Artifact]
    encoder: Artifact
    text_tuning: Artifact | None
    clip: Artifact
    schedule: Artifact | None


def list_sources(config: RunConfig) -> list[str]:
    """Returns the user's prompt files, checked, those of weaker networks, and of the model that writes prompts out."""
    sample = config.sample
    for prompt in sample.prompts:
        clean_prompt(prompt, "sample.prompts:")
    if sample.prompts_file is not None:
        read_prompts(sample.prompts_file)
    if sample.evaluate_prompts is not None:
        read_protocol(sample.evaluate_prompts, sample.evaluate, config.seed)
    files = [path for path in (sample.prompts_file, sample.evaluate_prompts) if path is not None]
    own = sample.expand.model if sample.expand is not None and Path(sample.expand.model).exists() else None
    return files + list_guide_files(config) + (list_model_files(own) if own is not None else [])


def list_prompts(config: SampleConfig, source: str, seed: int) -> list[tuple[Role, EvalPrompt]]:
    """Returns (role, prompt) in sampling order: what to show, then what to evaluate."""
    from eval.metrics.samples_table import EVALUATE, SHOW

    shown = [EvalPrompt(clean_prompt(prompt), "user", "", None) for prompt in config.prompts]
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
    return [*((SHOW, prompt) for prompt in shown), *((EVALUATE, prompt) for prompt in judged)]


class SampleWorker:
    """Samples images for a chunk of prompts."""

    def __init__(
        self,
        cascade: CascadeConfig,
        clip: ClipSpec,
        config: SampleConfig,
        prompts: Sequence[tuple[Role, EvalPrompt]],
        seed: int,
    ) -> None:
        from eval.clip.scorer import ClipScorer
        from pipeline.runtime.device import worker_device

        self.cascade, self.scorer = build_cascade(cascade, worker_device()), ClipScorer.load(clip, worker_device())
        self.last_stage = self.cascade.stages[-1].entry.name
        self.config, self.prompts, self.seed = config, prompts, seed

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one Parquet file of samples."""
        from eval.metrics.samples_table import ROLES, write_samples

        size = self.config.prompts_per_shard
        chunk = self.prompts[task.id * size : (task.id + 1) * size]
        found: list[JudgedSample] = []
        for role in ROLES:
            if items := [prompt for kind, prompt in chunk if kind == role]:
                found += self._sample(role, items)
        images = write_samples(found, str(task.output_table()))
        return {"prompts": len(chunk), "images": images}

    def _sample(self, role: Role, items: list[EvalPrompt]) -> list[JudgedSample]:
        """Samples of one role: shown are all stages of the best candidate, judged is every candidate of one stage."""
        import numpy as np

        from eval.metrics.image_sets import judge_sample
        from eval.metrics.samples_table import EVALUATE, SHOW
        from eval.sampling.options import SamplingOptions

        candidates = self.config.candidates
        last = self.config.evaluate_at if role == EVALUATE else None
        texts = [item.prompt for item in items]
        options = SamplingOptions(num=candidates, seed=self.seed, stop_at=last, batch_size=self.config.batch_size)
        samples = self.cascade.sample(texts, options)
        images = [np.asarray(image) for image in samples.images]
        scores = self.scorer.similarity(images, samples.prompts).reshape(len(items), candidates)
        found = []
        for number, item in enumerate(items):
            best = int(scores[number].argmax())
            for index in range(candidates):
                if role == SHOW and index != best:
                    continue
                position = number * candidates + index
                shown = samples.by_stage if role == SHOW else {last or self.last_stage: samples.images}
                found += [
                    judge_sample(
                        by_position[position],
                        item,
                        float(scores[number, index]),
                        role=role,
                        seed=self.seed,
                        index=index,
                        chosen=index == best,
                        stage=stage,
                    )
                    for stage, by_position in shown.items()
                ]
        return found


def _place_expander(config: ExpandConfig | None) -> ExpandConfig | None:
    """Returns the config with the model's name as workers elsewhere understand it."""
    return config and config.model_copy(update={"model": resolve_model_name(config.model)})


def run(ctx: Context[SampleStageConfig, SampleInputs]) -> None:
    """Samples every prompt."""
    config, inputs = ctx.config.sample, ctx.inputs
    text: dict[str, Any] = {"max_length": ctx.config.max_length, "encoder_dtype": ctx.config.dtype}
    text |= {"encoder_pad": ctx.config.pad, "encoder_lowercase": ctx.config.lowercase}
    encoder = inputs.text_tuning or inputs.encoder
    text |= {"watermark": config.watermark, "expand": _place_expander(config.expand)}
    stages = place_levels(config.stages, inputs.schedule)
    cascade = trained_cascade(inputs.train, stages, encoder, inputs.clip, config.guides, **text)
    prompts = list_prompts(config, ctx.config.source, ctx.config.seed)
    arguments = {
        "cascade": cascade,
        "clip": read_clip_spec(inputs.clip),
        "config": config,
        "prompts": prompts,
        "seed": ctx.config.seed,
    }
    shards = [Shard(index, {}) for index in range(-(-len(prompts) // config.prompts_per_shard))]
    ctx.map_shards(SampleWorker, arguments, shards, on_gpu=True)


def _uses_input(config: RunConfig, name: str) -> bool:
    """Returns whether an input is read: what the config may do without only where it asks for it."""
    wanted = {TUNED: config.text_tuning is not None, "schedule": config.sample.fit is not None}
    return wanted.get(name, True)


STAGE = StageType(
    name="sample",
    run=run,
    config=SampleStageConfig,
    inputs=SampleInputs,
    optional=_uses_input,
    placement=always(Placement.MODELS),
    sources=list_sources,
    kind="evaluation",
    counter="images",
    balance=RowBalance(rows="images", written="images"),
)
