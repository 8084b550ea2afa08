"""Stage `evaluate`: gathers what the metrics of the samples are computed from, and writes metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dataprep.images.faces import FacesConfig, find_model_files
from dataprep.images.text_area import TextConfig, find_text_model_files
from dataprep.io import storage
from dataprep.io.keys import shard_name
from dataprep.io.parquet import read_table
from eval.clip.config import HeadConfig, HeadsConfig, LabelsConfig, ScoreConfig
from eval.metrics.config import EvaluateConfig, make_sweep_points
from eval.sampling.config import SamplingConfig
from pipeline.runtime.context import Context
from pipeline.stages.base import Placement, StageConfig, StageInputs, StageType, always, config_key
from pipeline.stages.clip import digest_clip, is_trained_here, read_clip_spec
from pipeline.stages.model_files import TUNED
from pipeline.stages.sample import SampleConfig, SampleStageConfig
from pipeline.stages.score import locate_heads
from pipeline.stages.trained_cascade import trained_cascade
from pipeline.stages.training_stages import read_stages
from pipeline.store.artifact import Artifact, Shard
from pipeline.store.run import Run

if TYPE_CHECKING:
    from eval.metrics.base import JudgedSamples, MeasuredFeatures, SweptSetting
    from eval.metrics.feature_models import ClipIdentity
    from eval.metrics.judges.base import Verdict
    from eval.metrics.memorisation import CopySearch
    from eval.metrics.samples_table import JudgedSample
    from pipeline.config import RunConfig

VERDICTS = "verdicts"  # subfolder of what judges say
AUDIT = "audit"  # subfolder of what detectors, heads and labels see in samples
VALIDATION_PREFIX = "validation_"  # of the keys of a validation in a training log


class EvaluateStageConfig(StageConfig):
    """What the stage sees of the config."""

    evaluate: EvaluateConfig
    max_length: int = config_key("embed.max_length")
    dtype: str = config_key("embed.dtype")
    pad: bool = config_key("embed.pad")
    lowercase: bool = config_key("embed.lowercase")
    faces: FacesConfig | None = config_key("annotate.faces")
    text: TextConfig | None = config_key("annotate.text")
    heads: HeadsConfig = config_key("score.heads")
    labels: LabelsConfig = config_key("score.labels")


@dataclass(frozen=True, kw_only=True)
class EvaluateInputs(StageInputs):
    """The samples, the CLIP that scores them, the validation images; and for sweep and likelihood the cascade."""

    sample: Artifact
    clip: Artifact
    pack: Artifact
    train: dict[str, Artifact]
    encoder: Artifact | None
    text_tuning: Artifact | None

    @property
    def text_encoder(self) -> Artifact:
        """The encoder that the cascade reads."""
        found = self.text_tuning or self.encoder
        assert found is not None
        return found


EvaluateContext = Context[EvaluateStageConfig, EvaluateInputs]


def list_sources(config: RunConfig) -> list[str]:
    """Returns the files of all models and of the reference, checked."""
    from eval.metrics.feature_models import check_feature_models
    from eval.metrics.image_sets import check_judges
    from pipeline.stages.reference_images import find_reference_files

    files = check_feature_models(config.evaluate.features) + check_judges(config.evaluate.judges)
    files += _find_audit_files(config.annotate.faces, config.annotate.text, config.score.heads)
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
        judged = replace(judged, judges=ctx.config.evaluate.judges, verdicts=_collect_verdicts(ctx))
        judged = replace(judged, copies=_search_copies(ctx, features))
        judged = _audit_samples(ctx, judged)
    judged = replace(judged, likelihood=_measure_likelihood(ctx))
    clip = read_clip_spec(inputs.clip)
    # A CLIP trained in the run has no name; the digest tells whether two runs share it.
    spec = {"model": None if is_trained_here(inputs.clip) else clip["model"], "pretrained": clip["pretrained"]}
    metrics = compute_metrics(judged, _identify_clip(ctx), spec)
    metrics["validation_loss"] = read_validation_losses(ctx.run, inputs.sample)
    storage.write_json(ctx.path("metrics.json"), metrics)
    ctx.counters["images"] = metrics["images"]


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
    hashes = _hash_files(check_feature_models(config.features))
    return {"clip": read_clip_spec(ctx.inputs.clip), "features": list(config.features), "hashes": hashes}


def _hash_files(paths: Sequence[str]) -> dict[str, str]:
    return {path: storage.sha256_file(path)[0] for path in paths}


def _identify_clip(ctx: EvaluateContext) -> ClipIdentity:
    """Returns what figures say of the CLIP that scores."""
    from eval.metrics.feature_models import ClipIdentity, find_clip_resolution

    clip, model = ctx.inputs.clip, str(read_clip_spec(ctx.inputs.clip)["model"])
    name = "trained in the run" if is_trained_here(clip) else model
    return ClipIdentity(name, digest_clip(clip), find_clip_resolution(model))


def _measure_features(
    ctx: EvaluateContext, models: dict[str, Any], size: int, swept_sizes: Sequence[int]
) -> MeasuredFeatures:
    """Extracts the features of every set of images, each into a subfolder, and collects them."""
    from eval.metrics.base import MeasuredFeatures
    from eval.metrics.feature_models import describe_space
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
    clip = _identify_clip(ctx)
    return MeasuredFeatures(
        spaces=[describe_space(space, clip) for space in config.features],
        reference=REFERENCE_SET if config.reference else VALIDATION_SET,
        reference_name=config.reference or "validation images of the run",
        size=size,
        sets=collected.sets,
        pairs=collected.pairs,
        subsample=config.subsample,
    )


# ---------------------------------------------------------------------------------------------- judges and copies


def _collect_verdicts(ctx: EvaluateContext) -> dict[str, list[Verdict]]:
    """Lets the judges look at every candidate, and returns what they say."""
    from eval.metrics.image_sets import check_judges, read_verdicts
    from pipeline.stages.image_features import JudgeWorker

    judges = ctx.config.evaluate.judges
    if not judges:
        return {}
    arguments = {"clip": read_clip_spec(ctx.inputs.clip), "judges": list(judges)}
    arguments["hashes"] = _hash_files(check_judges(judges))
    ctx.map_shards(JudgeWorker, arguments, ctx.join_shards(ctx.inputs.sample), subfolder=VERDICTS, on_gpu=True)
    names = [ctx.path(m.subfolder, out.path) for m in ctx.finished if m.subfolder == VERDICTS for out in m.outputs]
    return read_verdicts(row for name in sorted(names) for row in storage.read_json(name))


def _audit_samples(ctx: EvaluateContext, judged: JudgedSamples) -> JudgedSamples:
    """Measures the samples as the training images were: faces, text, heads and labels, those that the run has."""
    from eval.metrics.audit import AuditConfig
    from pipeline.stages.image_features import AuditWorker

    config = ctx.config
    score = ScoreConfig(heads=locate_heads(config.heads), labels=config.labels)
    audit = AuditConfig(faces=config.faces, text=config.text, score=score)
    if not audit.looks:
        return judged
    hashes = _hash_files(_find_audit_files(config.faces, config.text, score.heads))
    arguments = {"clip": read_clip_spec(ctx.inputs.clip), "audit": audit, "hashes": hashes}
    ctx.map_shards(AuditWorker, arguments, ctx.join_shards(ctx.inputs.sample), subfolder=AUDIT, on_gpu=audit.needs_clip)
    names = [ctx.path(m.subfolder, out.path) for m in ctx.finished if m.subfolder == AUDIT for out in m.outputs]
    return replace(judged, audit=audit, audited=[row for name in sorted(names) for row in storage.read_json(name)])


def _find_audit_files(faces: FacesConfig | None, text: TextConfig | None, heads: Mapping[str, HeadConfig]) -> list[str]:
    """Returns the files of detectors and heads; raises UserError for a missing one."""
    files = [*(find_model_files(faces) if faces else ()), *(find_text_model_files(text) if text else ())]
    if heads:
        from eval.clip.heads import find_head_files

        files += find_head_files(heads)
    return files


def _search_copies(ctx: EvaluateContext, features: MeasuredFeatures) -> CopySearch | None:
    """Looks for near copies of training images among the samples, and among validation images for comparison."""
    from eval.metrics.feature_sets import SAMPLE_SET, VALIDATION_SET
    from eval.metrics.memorisation import CopySearch, NearestImages, read_pairs
    from pipeline.stages.copy_queries import collect_queries, write_queries
    from pipeline.stages.image_features import FOLDER, QUERIES, NeighbourWorker

    config = ctx.config.evaluate.memorisation
    if config is None:
        return None
    markers = [marker for marker in ctx.finished if marker.subfolder.startswith(FOLDER)]
    tables = [ctx.path(marker.subfolder, output.path) for marker in markers for output in marker.outputs]
    limit, size = config.queries, features.size
    sets = {
        SAMPLE_SET: collect_queries(SAMPLE_SET, tables, ctx.inputs.sample.files(), size, limit),
        VALIDATION_SET: collect_queries(VALIDATION_SET, tables, ctx.inputs.pack.files(), size, limit),
    }
    path, sha256 = write_queries(ctx.path(FOLDER, QUERIES), sets)
    shards = [
        Shard(shard.id, shard.files | {QUERIES: path}, shard.sha256 | {QUERIES: sha256})
        for shard in ctx.join_shards(ctx.inputs.pack)
    ]
    arguments = {"clip": read_clip_spec(ctx.inputs.clip), "size": size, "neighbours": config.neighbours}
    folder = storage.join(FOLDER, "neighbours")
    ctx.map_shards(NeighbourWorker, arguments, shards, subfolder=folder, on_gpu=True)
    storage.remove(path)  # it holds images, which would have to be forgotten
    found = {name: NearestImages(queries, config.neighbours) for name, queries in sets.items()}
    for marker in ctx.finished:
        for output in marker.outputs if marker.subfolder == folder else ():
            for pair in read_pairs(read_table(ctx.path(folder, output.path), "features")):
                name, _, query = pair.query.partition(":")
                found[name].merge([replace(pair, query=query)])
    return CopySearch(
        samples=found[SAMPLE_SET].nearest(),
        held_out=found[VALIDATION_SET].nearest(),
        held_out_name="validation images",
        training_images=ctx.counters.get("training_images", 0),
        threshold=config.threshold,
        features=f"CLIP ({_identify_clip(ctx).name})",
        size=size,
    )


# ---------------------------------------------------------------------------------------------- sweep


def _list_settings(ctx: EvaluateContext) -> list[SweptSetting]:
    """Returns the settings of the sweep, with the tables of features that `_sample_sweep` writes."""
    from eval.metrics.base import SweptSetting
    from eval.metrics.feature_sets import SWEEP_SET

    sweep = ctx.config.evaluate.sweep
    if sweep is None:
        return []
    cascade = read_stages(ctx.inputs.train)
    stage = sweep.stage or next(iter(cascade))
    size = cascade[stage].resolution
    points = make_sweep_points(sweep, _read_sampling(ctx).stages.get(stage, SamplingConfig()))
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
    samples, sampled = first[: sweep.prompts], _read_sampling(ctx)
    text: dict[str, Any] = {"max_length": ctx.config.max_length, "encoder_dtype": ctx.config.dtype}
    text |= {"encoder_pad": ctx.config.pad, "encoder_lowercase": ctx.config.lowercase}
    arguments = {
        **models,
        "cascade": trained_cascade(
            ctx.inputs.train, sampled.stages, ctx.inputs.text_encoder, ctx.inputs.clip, sampled.guides, **text
        ),
        "stage": settings[0].stage,
        "points": [item.point for item in settings],
        "prompts": [(sample.prompt, sample.claim) for sample in samples],
        "seed": samples[0].seed,
    }
    shards = [Shard(number, {}) for number in range(len(settings))]
    ctx.map_shards(SweepWorker, arguments, shards, subfolder=SWEEP_SET, on_gpu=True)


# ---------------------------------------------------------------------------------------------- likelihood


def _measure_likelihood(ctx: EvaluateContext) -> dict[str, list[dict[str, float]]]:
    """Measures the bits of validation images under every stage that denoises, a shard each; {} if not requested."""
    from eval.metrics.likelihood import collect_likelihood
    from pipeline.stages.image_likelihood import FOLDER, LikelihoodWorker

    config, inputs = ctx.config.evaluate.likelihood, ctx.inputs
    if config is None:
        return {}
    text: dict[str, Any] = {"max_length": ctx.config.max_length, "encoder_dtype": ctx.config.dtype}
    text |= {"encoder_pad": ctx.config.pad, "encoder_lowercase": ctx.config.lowercase}
    cascade = trained_cascade(inputs.train, {}, inputs.text_encoder, inputs.clip, **text)
    arguments = {"cascade": cascade, "pack": inputs.pack.files(), "config": config}
    trainings = read_stages(inputs.train)
    denoisers = [number for number, entry in enumerate(cascade.stages) if trainings[entry.name].trains == "diffusion"]
    shards = [Shard(number, {}) for number in denoisers]
    ctx.map_shards(LikelihoodWorker, arguments, shards, subfolder=FOLDER, on_gpu=True)
    markers = sorted((marker for marker in ctx.finished if marker.subfolder == FOLDER), key=lambda marker: marker.id)
    paths = [ctx.path(FOLDER, output.path) for marker in markers for output in marker.outputs]
    return collect_likelihood([storage.read_json(path) for path in paths])


def _read_sampling(ctx: EvaluateContext) -> SampleConfig:
    """Returns how the samples were generated."""
    return SampleStageConfig.from_manifest(ctx.inputs.sample.manifest).sample


def _uses_input(config: RunConfig, name: str) -> bool:
    if name == TUNED and config.text_tuning is None:
        return False
    return config.evaluate.sweep is not None or config.evaluate.likelihood is not None


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
