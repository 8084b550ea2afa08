"""The stage that judges: CLIP score, composition, distances, retrieval, the best of N, a sampler's sweep."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from dataprep import storage
from dataprep.drawing import draw
from dataprep.grammar import Claim
from dataprep.schema import check_kind, read_table
from eval.composition import chance, check, tally
from eval.distances import FeatureSet, Subsample, compare_sets
from eval.features import OWN, FeaturesConfig, check_features, describe_features, distance_name
from eval.generate import prompt_number
from eval.protocol import EvaluateConfig, sweep_points
from eval.settings import SamplingConfig
from eval.statistics import best_of_table, bootstrap_mean, retrieval, wilson
from pipeline.config import RunConfig
from pipeline.context import Context
from pipeline.steps import measure
from pipeline.steps.judge import EVALUATE, trained_cascade
from pipeline.steps.models import clip_identity, clip_spec
from pipeline.store import Artifact, Run, Shard

COLUMNS = ["role", "prompt", "split", "language", "claim", "checks", "seed", "index", "chosen", "stage", "size"]
CHANCE_PICTURES = 500  # a group, at most, that chance and ceiling are measured on
BATCH = 4096  # rows of features at a time

Rows = Sequence[Mapping[str, Any]]
Key = tuple[str, int, str]  # set, size, feature model


def evaluate_sources(config: RunConfig) -> list[str]:
    """The files that a feature model or a reference comes from, checked."""
    files = check_features(config.evaluate.features)
    return files + (measure.reference_files(config.evaluate.reference) if config.evaluate.reference else [])


def evaluate(ctx: Context) -> None:
    """Everything that is measured of the samples: metrics.json, whose keys docs/metrics.md lists."""
    config: EvaluateConfig = ctx.config["evaluate"]
    drawn = [row for row in samples(ctx.inputs["sample"]) if row["role"] == EVALUATE]
    chosen, first = [row for row in drawn if row["chosen"]], [row for row in drawn if row["index"] == 0]
    metrics: dict[str, Any] = {"images": len(chosen), "candidates": len(drawn) // max(1, len(chosen))}
    clip = clip_spec(ctx.inputs["clip"])
    # One trained here has no name; its digest tells whether two runs share it.
    metrics["clip"] = {"model": None if _trained(ctx) else clip["model"], "pretrained": clip["pretrained"]}
    metrics["clip"]["digest"] = clip_identity(ctx.inputs["clip"])
    metrics |= clip_scores(chosen, first) | compositions(ctx.inputs["sample"], chosen, first)
    metrics["best_of"] = best_of_rows(drawn)
    metrics["validation_loss"] = validation_losses(ctx.run, ctx.inputs["sample"])
    metrics |= _measured(ctx, config, clip, first)
    storage.write_json(ctx.path("metrics.json"), metrics)
    ctx.counters["images"] = len(chosen)


def samples(artifact: Artifact) -> Iterator[dict[str, Any]]:
    """The rows of a sample artifact without their pictures."""
    for path in artifact.files():
        yield from read_table(path, "samples", [*COLUMNS, "clip_score"]).to_pylist()


def validation_losses(run: Run, sample: Artifact) -> dict[str, dict[str, float]]:
    """The last validation of each cascade stage that drew the samples: loss, x0_mse, and the loss by noise level."""
    found = {}
    for name, fingerprint in sample.manifest.inputs.items():
        artifact = run.artifact(name, fingerprint) if name.startswith("train.") else None
        rows = storage.read_json_lines(artifact.path("log.jsonl")) if artifact else []
        if validated := [row for row in rows if row.get("validation_loss") is not None]:
            last = {key: value for key, value in validated[-1].items() if key.startswith("validation_")}
            found[name] = {key.removeprefix("validation_"): value for key, value in last.items()}
    return found


# ---------------------------------------------------------------------------------------------- CLIP score


def clip_scores(chosen: Rows, first: Rows) -> dict[str, Any]:
    """Mean CLIP score of the chosen images with its interval, of the first ones, and a split apart."""
    if not chosen:
        return {"clip_score": None, "clip_score_interval": None, "clip_score_first": None, "clip_score_by": {}}
    score = bootstrap_mean([row["clip_score"] for row in chosen])
    by_split = defaultdict(list)
    for row in chosen:
        by_split[row["split"]].append(row["clip_score"])
    return {
        "clip_score": score["value"],
        "clip_score_interval": {"low": score["low"], "high": score["high"]},
        "clip_score_first": bootstrap_mean([row["clip_score"] for row in first]),
        "clip_score_by": {name: bootstrap_mean(values) | {"n": len(values)} for name, values in by_split.items()},
    }


def best_of_rows(drawn: Rows) -> list[dict[str, Any]]:
    """What CLIP's choice gains, for N = 1, 2, 4 ... of the candidates that there are."""
    by_prompt: dict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for row in drawn:
        by_prompt[row["prompt"], row["seed"]].append(row)
    if not by_prompt:
        return []
    count = min(map(len, by_prompt.values()))
    grid = [sorted(rows, key=lambda row: row["index"])[:count] for rows in by_prompt.values()]
    scores_NK = np.asarray([[row["clip_score"] for row in rows] for rows in grid], np.float64)
    right_NK = None
    if all(row["checks"] for rows in grid for row in rows):
        right_NK = np.asarray([[measure.checks_of(row)["all"] for row in rows] for rows in grid])
    return best_of_table(scores_NK, right_NK)


# ---------------------------------------------------------------------------------------------- composition


def compositions(artifact: Artifact, chosen: Rows, first: Rows) -> dict[str, Any]:
    """Composition accuracy by split and by language, against chance and the ceiling; empty without claims."""
    tables = {}
    for by in ("split", "language"):
        groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in chosen:
            if row["claim"] is not None:
                groups[row[by]].append(row)
        wanted = {_id(row) for rows in groups.values() for row in rows[:CHANCE_PICTURES]}
        pictures = _pictures(artifact, wanted)
        names = sorted(groups, reverse=by == "split")  # "seen" before "heldout", "en" before "zh"
        tables[by] = [entry for name in names for entry in _table(groups[name], by, name, pictures)]
    plain = {
        name: [row for row in first if row["claim"] is not None and row["split"] == name]
        for name in {row["split"] for row in first}
    }
    first_figures = {
        name: {key: entry["accuracy"] for key, entry in tally([measure.checks_of(row) for row in rows]).items()}
        for name, rows in sorted(plain.items(), reverse=True)
        if rows
    }
    return {
        "composition_table": tables["split"],
        "composition": _accuracy(tables["split"], "split"),
        "composition_first": first_figures,
        "composition_language": _accuracy(tables["language"], "language"),
        "composition_language_table": tables["language"],
    }


def _table(rows: Rows, by: str, name: str, pictures: Mapping[Any, np.ndarray]) -> list[dict[str, Any]]:
    """A row an attribute: accuracy with its 95% Wilson interval, chance, ceiling and n."""
    examples = [(pictures[_id(row)], Claim.model_validate_json(row["claim"])) for row in rows[:CHANCE_PICTURES]]
    by_chance, best = chance(examples), _ceiling(rows[:CHANCE_PICTURES])
    table = []
    for attribute, entry in tally([measure.checks_of(row) for row in rows]).items():
        count = int(entry["n"])
        found = {"chance": by_chance.get(attribute), "ceiling": best.get(attribute), "accuracy": entry["accuracy"]}
        found |= wilson(round(entry["accuracy"] * count), count)
        table.append({by: name, "attribute": attribute, **found, "n": count})
    return table


def _ceiling(rows: Rows) -> dict[str, float]:
    """What the checker says of real drawings of the same prompts, at the same size: below 1 the checker errs."""
    results = []
    for row in rows:
        claim = Claim.model_validate_json(row["claim"])
        results.append(check(draw(claim, np.random.default_rng(prompt_number(row["prompt"])), row["size"]), claim))
    return {name: entry["accuracy"] for name, entry in tally(results).items()}


def _accuracy(table: Rows, by: str) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = defaultdict(dict)
    for entry in table:
        figures[entry[by]][entry["attribute"]] = entry["accuracy"]
    return dict(figures)


def _id(row: Mapping[str, Any]) -> tuple[str, int, int]:
    return row["prompt"], row["seed"], row["index"]


def _pictures(artifact: Artifact, wanted: set[tuple[str, int, int]]) -> dict[tuple[str, int, int], np.ndarray]:
    found = {}
    for path in artifact.files():
        for row in read_table(path, "samples", ["role", "prompt", "seed", "index", "png"]).to_pylist():
            if row["role"] == EVALUATE and _id(row) in wanted:
                found[_id(row)] = np.asarray(Image.open(io.BytesIO(row["png"])).convert("RGB"))
    return found


# ---------------------------------------------------------------------------------------------- features


def _measured(ctx: Context, config: EvaluateConfig, clip: Any, first: Rows) -> dict[str, Any]:
    """Distances, retrieval and the sweep: what needs features."""
    if not first:
        return {"reference": None, "distances": {}, "retrieval": None, "sweep": []}
    size = first[0]["size"]
    swept = _swept_stage(ctx) if config.sweep else None
    sizes = sorted({size, swept[1]} if swept else {size})
    own_files = {path: storage.sha256_file(path)[0] for path in check_features(config.features)}
    arguments = {"clip": clip, "features": list(config.features), "hashes": own_files}
    shards = measure.numbered(ctx.shards("sample"), measure.SAMPLE)
    shards += measure.numbered(ctx.shards("pack"), measure.VALIDATION)
    if config.reference:
        shards += measure.numbered(measure.reference_shards(config.reference), measure.REFERENCE)
    ctx.map_shards(measure.FeatureWorker, arguments | {"sizes": sizes}, shards, subfolder=measure.FOLDER, on_gpu=True)
    paths = [ctx.path(marker.subfolder, output.path) for marker in ctx.finished for output in marker.outputs]
    sets, pairs = collect(paths, config.subsample, size)
    against = measure.REFERENCE if config.reference else measure.VALIDATION
    named = config.reference or "validation images of the run"
    metrics: dict[str, Any] = {"reference": {"what": named, "images": _count(sets, against, size), "size": size}}
    metrics["distances"] = {}
    for features in config.features:
        key = features.key
        real, fake = sets.get((against, size, key)), sets.get((measure.SAMPLE, size, key))
        entry = distances(real, fake, features, str(clip["model"]) if not _trained(ctx) else "trained in the run")
        metrics["distances"][key] = entry
        metrics |= {distance_name(features): entry["fd"], f"kid_{key}": entry["kid"]}
    metrics |= pair_metrics(pairs)
    metrics["sweep"] = _sweep(ctx, config, arguments, swept, first, sets, against) if swept else []
    return metrics


def _trained(ctx: Context) -> bool:
    return ctx.inputs["clip"].has("export/clip.json")


def _count(sets: Mapping[Key, FeatureSet], name: str, size: int) -> int:
    found = sets.get((name, size, OWN))
    return len(found) if found else 0


def collect(paths: Sequence[str], subsample: int, size: int) -> tuple[dict[Key, FeatureSet], dict[str, Subsample]]:
    """One pass over files of features, in memory that does not grow with them.

    Returns the sets by (set, size, feature model), and by set a subsample of (image, text, caption), unit features of
    the run's CLIP, of pictures of ``size``.
    """
    sets: dict[Key, FeatureSet] = {}
    pairs: dict[str, Subsample] = defaultdict(lambda: Subsample(subsample))
    for path in paths:
        with storage.local_copy(path) as local, pq.ParquetFile(local) as file:
            check_kind(file.schema_arrow, path, "features")
            for batch in file.iter_batches(BATCH):
                kinds, sides = np.asarray(batch["set"].to_pylist()), np.asarray(batch["size"])
                for kind, side in sorted({*zip(kinds.tolist(), sides.tolist(), strict=True)}):
                    rows = batch.take(np.flatnonzero((kinds == kind) & (sides == side)))
                    _add(sets, rows, kind, side, subsample)
                    if side == size and "text" in rows.schema.names:
                        images, texts = measure.as_array(rows["image_clip"]), measure.as_array(rows["text"])
                        values = zip(images, texts, rows["caption"].to_pylist(), strict=True)
                        copies = ((image.copy(), text.copy(), caption) for image, text, caption in values)
                        pairs[kind].add(rows["id"].to_pylist(), copies)
    return sets, dict(pairs)


def _add(sets: dict[Key, FeatureSet], rows: Any, kind: str, side: int, subsample: int) -> None:
    for name in rows.schema.names:
        if name.startswith("image_"):
            features_ND = measure.as_array(rows[name])
            key = (kind, side, name.removeprefix("image_"))
            sets.setdefault(key, FeatureSet(features_ND.shape[1], subsample)).add(rows["id"].to_pylist(), features_ND)


def distances(real: FeatureSet | None, fake: FeatureSet | None, config: FeaturesConfig, clip: str) -> dict[str, Any]:
    """`compare_sets`, with what it was measured in and what to keep in mind; figures None where a set is missing."""
    empty = FeatureSet(1)
    found: dict[str, Any] = {"name": distance_name(config), "model": describe_features(config, clip)}
    found |= compare_sets(real or empty, fake or empty)
    smaller = min(len(real or ()), len(fake or ()))
    found["dim"] = real.dim if real else None
    found["note"] = None
    if smaller < 2:
        found["note"] = "one of the sets has fewer than two pictures"
    elif real is not None and smaller <= real.dim:
        found["note"] = f"{smaller} pictures for {real.dim} dimensions: FD comes out too large; compare equal numbers"
    return found


def pair_metrics(pairs: Mapping[str, Subsample]) -> dict[str, Any]:
    """Retrieval on validation pairs; the CLIP score of real pairs, and of samples against prompts of others."""
    found: dict[str, Any] = {"retrieval": None, "clip_score_validation": None, "clip_score_chance": None}
    if rows := pairs[measure.VALIDATION].taken() if measure.VALIDATION in pairs else []:
        images, texts, captions = (np.stack([row[part] for row in rows]) for part in range(3))
        found["retrieval"] = retrieval(images, texts, captions.tolist())
        found["clip_score_validation"] = bootstrap_mean(np.einsum("nd,nd->n", images, texts).tolist())
    if len(rows := pairs[measure.SAMPLE].taken() if measure.SAMPLE in pairs else []) > 1:
        images, texts = (np.stack([row[part] for row in rows]) for part in range(2))
        found["clip_score_chance"] = float(np.einsum("nd,nd->n", images, np.roll(texts, 1, axis=0)).mean())
    return found


# ---------------------------------------------------------------------------------------------- sweep


def _swept_stage(ctx: Context) -> tuple[str, int, SamplingConfig]:
    """The stage whose sampler is swept, its resolution, and how it is sampled otherwise."""
    stages = {name.removeprefix("train."): a for name, a in ctx.inputs.items() if name.startswith("train.")}
    name = ctx.config["evaluate"].sweep.stage or next(iter(stages))
    settings = ctx.inputs["sample"].manifest.config["sample"]["stages"].get(name, {})
    return name, stages[name].manifest.config[f"train.{name}"]["resolution"], SamplingConfig(**settings)


def _sweep(
    ctx: Context,
    config: EvaluateConfig,
    arguments: Mapping[str, Any],
    swept: tuple[str, int, SamplingConfig],
    first: Rows,
    sets: Mapping[Key, FeatureSet],
    against: str,
) -> list[dict[str, Any]]:
    """A row a setting: CLIP score, distances and composition of the same prompts."""
    assert config.sweep is not None
    stage, size, base = swept
    points = sweep_points(config.sweep, base)
    if not points:
        return []
    rows = first[: config.sweep.prompts]
    sampled = ctx.inputs["sample"].manifest.config["sample"]["stages"]
    settings = {name: SamplingConfig(**values) for name, values in sampled.items()}
    more = {
        "cascade": trained_cascade(ctx, settings),
        "stage": stage,
        "points": points,
        "prompts": measure.claims_of(rows),
        "seed": rows[0]["seed"],
    }
    shards = [Shard(number, {}) for number in range(len(points))]
    ctx.map_shards(measure.SweepWorker, {**arguments, **more}, shards, subfolder=measure.SWEEP, on_gpu=True)
    table = []
    for number, point in enumerate(points):
        path = ctx.path(measure.SWEEP, f"{number:05d}.parquet")
        drawn, pairs = collect([path], config.subsample, size)
        right = [value for value in read_table(path, "features", ["right"])["right"].to_pylist() if value is not None]
        scores = [float(image @ text) for image, text, _ in pairs[measure.SWEEP].taken()]
        entry: dict[str, Any] = {"swept": point.swept, "stage": stage, "size": size, **point.settings.model_dump()}
        entry |= {"images": len(scores), "clip_score": bootstrap_mean(scores)}
        entry["accuracy"] = sum(right) / len(right) if right else None
        for features in config.features:
            key = features.key
            figures = distances(sets.get((against, size, key)), drawn.get((measure.SWEEP, size, key)), features, "")
            entry |= {distance_name(features): figures["fd"], f"kid_{key}": figures["kid"]}
        table.append(entry)
    return table
