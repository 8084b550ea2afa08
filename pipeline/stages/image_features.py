"""Workers that extract image features, shard by shard: of samples, of the run's validation images, of reference images
from outside, and of a sweep of sampler settings. `eval.metrics` computes the metrics from them.

The driver imports this module to name the workers; what needs torch is imported in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.images.decode import decode_rgb, read_shard_rgb
from dataprep.images.resize import resize_square
from dataprep.io.pack_format import BUCKET_COLUMN, SQUARE, pixels_column
from dataprep.io.parquet import check_kind, write_table
from dataprep.synthetic.grammar import Claim
from eval.metrics.composition import check_image
from eval.metrics.config import OWN_CLIP, FeaturesConfig, SweepPoint
from eval.metrics.feature_sets import REFERENCE_SET, SAMPLE_SET, SWEEP_SET, VALIDATION_SET
from eval.metrics.feature_tables import make_features_table
from eval.metrics.samples_table import EVALUATE, read_samples
from eval.sampling.config import CascadeConfig
from eval.sampling.options import SamplingOptions
from pipeline.runtime.device import worker_device
from pipeline.runtime.shard_worker import ShardTask
from pipeline.stages.trained_cascade import build_cascade

if TYPE_CHECKING:
    from eval.clip.scorer import ClipSpec
    from eval.metrics.feature_extractors import FeatureExtractor

FOLDER = "features"  # of the artifact; a subfolder per set
READ_ROWS = 256  # images at a time

Item = TypeVar("Item")
NamedImage = tuple[str, np.ndarray, str]  # id, uint8 (H, W, 3), caption


# ---------------------------------------------------------------------------------------------- workers


class FeatureWorker:
    """Extracts the features of one shard of a set: of samples, of validation pairs, or of reference images.

    ``hashes`` are those of the feature models' files; they are part of what identifies a finished shard.
    """

    def __init__(
        self, clip: ClipSpec, features: Sequence[FeaturesConfig], sizes: Sequence[int], hashes: Mapping[str, str]
    ) -> None:
        self.models, self.sizes = _load_models(clip, features), sizes

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one Parquet file, none for a shard without images to measure."""
        set_name, tables = _find_set(task.files), []
        for size in self.sizes[:1] if set_name == SAMPLE_SET else self.sizes:  # samples have one size, their own
            for part in _group(_read_images(set_name, task.files, size), READ_ROWS):
                ids, images, captions = zip(*part, strict=True)
                known = captions if set_name != REFERENCE_SET else None
                tables.append(make_features_table(self.models, set_name, ids, images, known))
        if tables:
            write_table(pa.concat_tables(tables), task.output_table(), "features")
        return {f"{set_name}_images": sum(table.num_rows for table in tables)}


class SweepWorker:
    """Samples the prompts at one setting of a stage's sampler and extracts features. A shard is a setting."""

    def __init__(
        self,
        cascade: CascadeConfig,
        clip: ClipSpec,
        features: Sequence[FeaturesConfig],
        hashes: Mapping[str, str],
        stage: str,
        points: Sequence[SweepPoint],
        prompts: Sequence[tuple[str, Claim | None]],
        seed: int,
    ) -> None:
        self.cascade, self.models = build_cascade(cascade, worker_device()), _load_models(clip, features)
        self.stage, self.points, self.prompts, self.seed = stage, points, prompts, seed

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one Parquet file: features, and `right`, whether the image shows all that its prompt claims."""
        settings = self.points[task.id].settings
        stages = [
            replace(stage, entry=stage.entry.model_copy(update={"sampling": settings}))
            if stage.entry.name == self.stage
            else stage
            for stage in self.cascade.stages
        ]
        swept = type(self.cascade)(stages, self.cascade.encoder, self.cascade.device)
        texts = [prompt for prompt, _ in self.prompts]
        samples = swept.sample(texts, SamplingOptions(seed=self.seed, stop_at=self.stage))
        images = [np.asarray(image) for image in samples.images]
        table = make_features_table(self.models, SWEEP_SET, texts, images, texts)
        correct = [
            check_image(image, claim)["all"] if claim else None
            for image, (_, claim) in zip(images, self.prompts, strict=True)
        ]
        table = table.append_column("right", pa.array(correct, pa.bool_()))
        write_table(table, task.output_table(), "features")
        return {"sweep_images": len(images)}


def _load_models(clip: ClipSpec, features: Sequence[FeaturesConfig]) -> dict[str, FeatureExtractor]:
    """Loads the run's CLIP, which scores and retrieval need, and the other feature models."""
    from eval.clip.scorer import ClipScorer
    from eval.metrics.feature_extractors import load_extractor

    own = ClipScorer.load(clip, worker_device())
    return {OWN_CLIP: own} | {config.key: load_extractor(config, own, worker_device()) for config in features}


# ---------------------------------------------------------------------------------------------- images


def _find_set(files: Mapping[str, str]) -> str:
    """Returns the set that a shard's files belong to; reference images have file names of their own."""
    sets = {"sample.parquet": SAMPLE_SET, "pack.parquet": VALIDATION_SET}
    return next((name for file, name in sets.items() if file in files), REFERENCE_SET)


def _read_images(set_name: str, files: Mapping[str, str], size: int) -> Iterator[NamedImage]:
    if set_name == SAMPLE_SET:
        return _read_first_samples(files["sample.parquet"])
    if set_name == VALIDATION_SET:
        return read_validation_images(files["pack.parquet"], size)
    return _read_reference(files, size)


def _read_first_samples(path: str) -> Iterator[NamedImage]:
    """Yields the first candidate of each judged prompt: samples without a choice."""
    for sample in read_samples([path], EVALUATE, images=True):
        if sample.index == 0:
            yield f"{sample.prompt}|{sample.seed}", sample.pixels(), sample.prompt


def read_validation_images(path: str, size: int) -> Iterator[NamedImage]:
    """Yields the validation pairs of a pack shard, square; row groups without any are not read."""
    from train.loader.pack_files import read_pixel_encoding
    from train.loader.row_group import decode_pixels

    column = pixels_column(size)
    with pq.ParquetFile(path) as file:
        check_kind(file.schema_arrow, path, "pack")
        stored = read_pixel_encoding(path, file.schema_arrow, column)
        names = ["key", "caption", column, *({BUCKET_COLUMN} & set(file.schema_arrow.names))]
        for group in range(file.num_row_groups):
            splits = file.read_row_group(group, ["split"])["split"].to_pylist()
            if rows := [row for row, split in enumerate(splits) if split == "validation"]:
                table = file.read_row_group(group, names).take(rows)
                for row in table.to_pylist():
                    shape = stored.shapes[row.get(BUCKET_COLUMN, SQUARE)]
                    image = resize_square(decode_pixels(row[column], stored.encoding, shape), size)
                    yield row["key"], image, row["caption"]


def _read_reference(files: Mapping[str, str], size: int) -> Iterator[NamedImage]:
    for name, path in files.items():
        if path.endswith(".tar"):
            for key, image in read_shard_rgb(path):
                yield f"{name}/{key}", resize_square(image, size), ""
        else:
            yield name, resize_square(decode_rgb(Path(path).read_bytes()), size), ""


def _group(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    return iter(lambda: list(islice(items, size)), [])
