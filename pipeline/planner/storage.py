"""What a run stores: images, training pixels, embeddings with every codec, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dataprep.text.embedding_codec import CODECS
from pipeline.planner.memory import OPTIMIZERS
from pipeline.planner.workload import PlanFacts
from train.config import TrainConfig

COMPRESSIONS = ("none", "zstd")
FEATURE_BYTES = 2  # of a number of CLIP's features


@dataclass(frozen=True)
class StorageVolume:
    """One artifact, or a column of it. An alternative to the config is not ``chosen`` and not in the sum."""

    name: str
    rows: float
    bytes: float
    chosen: bool = True


def _plan_download(facts: PlanFacts) -> Iterator[StorageVolume]:
    yield StorageVolume("download: tars and tables", facts.rates.images, facts.image_bytes)


def _plan_tables(facts: PlanFacts) -> Iterator[StorageVolume]:
    scores = 8.0 + FEATURE_BYTES * facts.clip.width * len(facts.config.score.feature_columns())
    size = facts.rates.urls * (facts.rates.pack_row_bytes + 30 + scores)
    yield StorageVolume("annotate, score, select", facts.rates.urls, size)


def _plan_pack(facts: PlanFacts) -> Iterator[StorageVolume]:
    rates = facts.rates
    for size, per_row in rates.pixel_bytes.items():
        name = f"pack: {size} px, {facts.config.pack.encoding_of(size)}"
        yield StorageVolume(name, rates.pairs, rates.pairs * per_row)
    for name in facts.config.pack.features:
        yield StorageVolume(f"pack: {name}", rates.pairs, rates.pairs * FEATURE_BYTES * facts.clip.width)
    yield StorageVolume("pack: keys and captions", rates.pairs, rates.pairs * rates.pack_row_bytes)


def _plan_embed(facts: PlanFacts) -> Iterator[StorageVolume]:
    config = facts.config.embed
    for codec in CODECS:
        for compression in COMPRESSIONS:
            size = facts.rates.embedding_bytes(facts.text.width, codec, compression == "zstd") * facts.captions
            chosen = (codec, compression) == (config.codec, config.compression)
            yield StorageVolume(f"embed: {codec}, {compression}", facts.captions, size, chosen)


def _plan_train(facts: PlanFacts) -> Iterator[StorageVolume]:
    for name, stage in facts.config.networks().items():
        kept = stage.keep_last + (stage.steps // stage.keep_every if stage.keep_every else 0)
        size = facts.parameters[name] * kept * count_checkpoint_bytes(stage) + 4 * facts.exported[name]
        yield StorageVolume(f"train.{name}: {kept} checkpoints, weights", facts.parameters[name], size)


# Stage -> what it stores; the row-aligned tables of annotate, score and select are one entry.
VOLUMES: dict[str, Callable[[PlanFacts], Iterator[StorageVolume]]] = {
    "download": _plan_download,
    "select": _plan_tables,
    "pack": _plan_pack,
    "embed": _plan_embed,
    "train": _plan_train,
}


def plan_volumes(facts: PlanFacts) -> list[StorageVolume]:
    """Returns what every stage stores, in the pipeline's order."""
    return [volume for plan in VOLUMES.values() for volume in plan(facts)]


def count_checkpoint_bytes(stage: TrainConfig) -> float:
    """Returns the bytes per parameter of a checkpoint: weight, EMA and moments in fp32."""
    return 8.0 + OPTIMIZERS[stage.optimizer].moments


def sum_bytes(volumes: list[StorageVolume]) -> float:
    """Returns the bytes of all that the config chooses."""
    return sum(volume.bytes for volume in volumes if volume.chosen)
