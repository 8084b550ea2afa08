"""Stage `evaluate`: gathers what the metrics of the samples are computed from, and writes metrics.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dataprep.io import storage
from dataprep.io.keys import shard_name
from eval.metrics.config import EvaluateConfig, make_sweep_points
from eval.sampling.config import SamplingConfig
from pipeline.runtime.context import Context
from pipeline.stages.base import Placement, StageConfig, StageInputs, StageType, always, config_key
from pipeline.stages.clip import digest_clip, is_trained_here, read_clip_spec
from pipeline.stages.sample import SampleStageConfig
from pipeline.stages.train import TrainStageConfig
from pipeline.stages.trained_cascade import trained_cascade
from pipeline.store.artifact import Artifact, Shard
from pipeline.store.run import Run

if TYPE_CHECKING:
    from eval.metrics.base import MeasuredFeatures, SweptSetting
    from eval.metrics.samples_table import JudgedSample
    from pipeline.config import RunConfig

VALIDATION_PREFIX = "validation_"  # of the keys of a validation in a training log


class EvaluateStageConfig(StageConfig):
    """What the stage sees of the config."""

    evaluate: EvaluateConfig
    max_length: int = config_key("embed.max_length")
    dtype: str = config_key("embed.dtype")
    pad: bool = config_key("embed.pad")
    lowercase: bool = config_key("embed.lowercase")


@dataclass(frozen=True, kw_only=True)
class EvaluateInputs(StageInputs):
    """The samples, the CLIP that scores them, the validation images; and for a sweep the cascade."""

    sample: Artifact
    clip: Artifact
    pack: Artifact
    train: dict[str, Artifact]
    encoder: Artifact | None


EvaluateContext = Context[EvaluateStageConfig, EvaluateInputs]


def list_sources(config: RunConfig) -> list[str]:
    """Returns the files of the feature models and of the reference, checked."""
    from eval.metrics.feature_models import check_feature_models
    from pipeline.stages.reference_images import find_reference_files

    files = check_feature_models(config.evaluate.features)
    reference = config.evaluate.reference
    return files + (find_reference_files(reference) if reference else [])


def run(ctx: EvaluateContext) -> None:
    """Writes metrics.json, whose keys docs/metrics.md lists."""
    from eval.metrics.base import JudgedSamples
    from eval.metrics.registry import compute_metrics
    from eval.metrics.samples_table import EVALUATE, read_samples

    inputs, paths = ctx.inputs, ctx.inputs.sample.files()
    judged = JudgedSamples(list(read_samples(paths, EVALUATE)), paths)
    if judged.first:
        models, sweep = _describe_models(ctx), _list_settings(ctx)
        features = _measure_features(ctx, models, judged.first[0].size, [item.size for item in sweep])
        _sample_sweep(ctx, models, sweep, judged.first)
        judged = replace(judged, features=features, sweep=sweep)
    count, clip = len(judged.chosen), read_clip_spec(inputs.clip)
    metrics: dict[str, Any] = {"images": count, "candidates": len(judged.samples) // max(1, count)}
    # A CLIP trained in the run has no name; the digest tells whether two runs share it.
    metrics["clip"] = {"model": None if is_trained_here(inputs.clip) else clip["model"]}
    metrics["clip"] |= {"pretrained": clip["pretrained"], "digest": digest_clip(inputs.clip)}
    metrics |= compute_metrics(judged)
    metrics["validation_loss"] = read_validation_losses(ctx.run, inputs.sample)
    storage.write_json(ctx.path("metrics.json"), metrics)
    ctx.counters["images"] = count


def read_validation_losses(run: Run, sample: Artifact) -> dict[str, dict[str, float]]:
    """Returns the last validation of each stage behind the samples: loss, x0_mse, and the loss per noise level."""
    found = {}
    for name, fingerprint in sample.manifest.inputs.items():
        artifact = run.artifact(name, fingerprint) if name.startswith("train.") else None
        rows = storage.read_json_lines(artifact.path("log.jsonl")) if artifact else []
        if validated := [row for row in rows if row.get("validation_loss") is not None]:
            last = {key: value for key, value in validated[-1].items() if key.startswith(VALIDATION_PREFIX)}
            found[name] = {key.removeprefix(VALIDATION_PREFIX): value for key, value in last.items()}
    return found


# ---------------------------------------------------------------------------------------------- features


def _describe_models(ctx: EvaluateContext) -> dict[str, Any]:
    """Returns the arguments of the workers that load feature models."""
    from eval.metrics.feature_models import check_feature_models

    config = ctx.config.evaluate
    hashes = {path: storage.sha256_file(path)[0] for path in check_feature_models(config.features)}
    return {"clip": read_clip_spec(ctx.inputs.clip), "features": list(config.features), "hashes": hashes}


def _measure_features(
    ctx: EvaluateContext, models: dict[str, Any], size: int, swept_sizes: Sequence[int]
) -> MeasuredFeatures:
    """Extracts the features of every set of images, each into a subfolder, and collects them."""
    from eval.metrics.base import MeasuredFeatures
    from eval.metrics.feature_sets import REFERENCE_SET, SAMPLE_SET, VALIDATION_SET
    from eval.metrics.feature_tables import collect_features
    from pipeline.stages.image_features import FOLDER, FeatureWorker
    from pipeline.stages.reference_images import make_reference_shards

    config, inputs = ctx.config.evaluate, ctx.inputs
    shards = {SAMPLE_SET: ctx.join_shards(inputs.sample), VALIDATION_SET: ctx.join_shards(inputs.pack)}
    if config.reference:
        shards[REFERENCE_SET] = make_reference_shards(config.reference)
    sizes = sorted({size, *swept_sizes})
    for name, part in shards.items():
        folder = storage.join(FOLDER, name)
        ctx.map_shards(
            FeatureWorker, {**models, "sizes": sizes}, part, subfolder=folder, on_gpu=True, keep_workers=True
        )
    ctx.close_pools()
    paths = [ctx.path(marker.subfolder, output.path) for marker in ctx.finished for output in marker.outputs]
    collected = collect_features(paths, config.subsample, size)
    return MeasuredFeatures(
        models=config.features,
        clip_name="trained in the run" if is_trained_here(inputs.clip) else str(models["clip"]["model"]),
        reference=REFERENCE_SET if config.reference else VALIDATION_SET,
        reference_name=config.reference or "validation images of the run",
        size=size,
        sets=collected.sets,
        pairs=collected.pairs,
        subsample=config.subsample,
    )


# ---------------------------------------------------------------------------------------------- sweep


def _list_settings(ctx: EvaluateContext) -> list[SweptSetting]:
    """Returns the settings of the sweep, with the tables of features that `_sample_sweep` writes."""
    from eval.metrics.base import SweptSetting
    from eval.metrics.feature_sets import SWEEP_SET

    sweep = ctx.config.evaluate.sweep
    if sweep is None:
        return []
    stage = sweep.stage or next(iter(ctx.inputs.train))
    size = TrainStageConfig.from_manifest(ctx.inputs.train[stage].manifest).train.resolution
    points = make_sweep_points(sweep, _read_sampling(ctx).get(stage, SamplingConfig()))
    paths = [ctx.path(SWEEP_SET, shard_name(number, "parquet")) for number in range(len(points))]
    return [SweptSetting(point, stage, size, path) for point, path in zip(points, paths, strict=True)]


def _sample_sweep(
    ctx: EvaluateContext, models: dict[str, Any], settings: Sequence[SweptSetting], first: Sequence[JudgedSample]
) -> None:
    """Samples the same prompts at every setting and extracts the features of the images, a shard per setting."""
    from eval.metrics.feature_sets import SWEEP_SET
    from pipeline.stages.image_features import SweepWorker

    sweep = ctx.config.evaluate.sweep
    if sweep is None or not settings:
        return
    samples = first[: sweep.prompts]
    assert ctx.inputs.encoder is not None
    text = {"max_length": ctx.config.max_length, "encoder_dtype": ctx.config.dtype}
    text |= {"encoder_pad": ctx.config.pad, "encoder_lowercase": ctx.config.lowercase}
    arguments = {
        **models,
        "cascade": trained_cascade(ctx.inputs.train, _read_sampling(ctx), ctx.inputs.encoder, **text),
        "stage": settings[0].stage,
        "points": [item.point for item in settings],
        "prompts": [(sample.prompt, sample.claim) for sample in samples],
        "seed": samples[0].seed,
    }
    shards = [Shard(number, {}) for number in range(len(settings))]
    ctx.map_shards(SweepWorker, arguments, shards, subfolder=SWEEP_SET, on_gpu=True)


def _read_sampling(ctx: EvaluateContext) -> dict[str, SamplingConfig]:
    """Returns the sampler settings of the samples, by cascade stage."""
    return SampleStageConfig.from_manifest(ctx.inputs.sample.manifest).sample.stages


def _uses_input(config: RunConfig, name: str) -> bool:
    return config.evaluate.sweep is not None


STAGE = StageType(
    name="evaluate",
    run=run,
    config=EvaluateStageConfig,
    inputs=EvaluateInputs,
    optional=_uses_input,
    placement=always(Placement.MODELS),
    sources=list_sources,
    kind="evaluation",
    counter="images",
)
