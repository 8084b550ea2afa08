"""Workers that extract image features, shard by shard: of samples, of the run's validation images, of reference images
from outside, and of a sweep of sampler settings. `eval.metrics` computes the metrics from them.

The driver imports this module to name the workers; what needs torch is imported in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.images.resize import resize_square
from dataprep.io import storage
from dataprep.io.keys import shard_name
from dataprep.io.pack_format import BUCKET_COLUMN, SQUARE, pixels_column
from dataprep.io.parquet import check_kind, write_table
from dataprep.synthetic.grammar import Claim
from eval.metrics.audit import AuditConfig, ImageAuditor
from eval.metrics.composition import check_image
from eval.metrics.config import FeaturesConfig, SweepPoint
from eval.metrics.feature_sets import REFERENCE_SET, SAMPLE_SET, SWEEP_SET, VALIDATION_SET
from eval.metrics.feature_tables import make_features_table
from eval.metrics.image_sets import (
    READ_ROWS,
    NamedImage,
    group,
    load_feature_models,
    load_judges,
    read_first_samples,
    read_reference_images,
    say_verdicts,
    tabulate_features,
)
from eval.metrics.judges.config import JudgeConfig
from eval.metrics.memorisation import NearestImages, read_queries, search_images
from eval.metrics.samples_table import EVALUATE, read_samples
from eval.sampling.config import CascadeConfig
from eval.sampling.options import SamplingOptions
from pipeline.runtime.device import worker_device
from pipeline.runtime.shard_worker import ShardTask
from pipeline.stages.trained_cascade import build_cascade

if TYPE_CHECKING:
    from eval.clip.scorer import ClipSpec

FOLDER = "features"  # of the artifact; a subfolder per set
QUERIES = "queries.parquet"  # file of a shard of `NeighbourWorker`


# ---------------------------------------------------------------------------------------------- workers


class FeatureWorker:
    """Extracts the features of one shard of a set: of samples, of validation pairs, or of reference images.

    ``hashes`` are those of the models' files; they are part of what identifies a finished shard.
    """

    def __init__(
        self, clip: ClipSpec, features: Sequence[FeaturesConfig], sizes: Sequence[int], hashes: Mapping[str, str]
    ) -> None:
        self.models, self.sizes = load_feature_models(clip, features, worker_device()), sizes

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one Parquet file, none for a shard without images to measure."""
        set_name, tables = _find_set(task.files), list[pa.Table]()
        for size in self.sizes[:1] if set_name == SAMPLE_SET else self.sizes:  # samples have one size, their own
            images = _read_images(set_name, task.files, size)
            tables += tabulate_features(self.models, set_name, images, set_name != REFERENCE_SET)
        if tables:
            write_table(pa.concat_tables(tables), task.output_table(), "features")
        return {f"{set_name}_images": sum(table.num_rows for table in tables)}


class JudgeWorker:
    """Lets the judges of ``evaluate.judges`` say what they see in every candidate of a shard of samples."""

    def __init__(self, clip: ClipSpec, judges: Sequence[JudgeConfig], hashes: Mapping[str, str]) -> None:
        from eval.clip.scorer import ClipScorer

        device = worker_device()
        self.judges = load_judges(judges, ClipScorer.load(clip, device), device)

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one JSON file."""
        samples, rows = read_samples([task.table("sample")], EVALUATE, images=True), []
        for part in group(samples, READ_ROWS):
            rows += say_verdicts(self.judges, [sample.pixels() for sample in part], [sample.prompt for sample in part])
        storage.write_json(str(task.out / shard_name(task.id, "json")), rows)
        return {"verdicts": len(rows)}


class AuditWorker:
    """Measures the first candidates of a shard of samples as the training images were measured."""

    def __init__(self, clip: ClipSpec, audit: AuditConfig, hashes: Mapping[str, str]) -> None:
        from eval.clip.scorer import ClipScorer

        self.auditor = ImageAuditor(audit, ClipScorer.load(clip, worker_device()) if audit.needs_clip else None)

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one JSON file."""
        rows: list[dict[str, Any]] = []
        for part in group(read_first_samples(task.files["sample.parquet"]), READ_ROWS):
            rows += self.auditor.measure([pixels for _, pixels, _ in part])
        storage.write_json(str(task.out / shard_name(task.id, "json")), rows)
        return {"audited": len(rows)}


class NeighbourWorker:
    """Finds the training images of a pack shard that are nearest to the queries, which the shard names as a file."""

    def __init__(self, clip: ClipSpec, size: int, neighbours: int) -> None:
        from eval.clip.scorer import ClipScorer

        self.scorer, self.size, self.neighbours = ClipScorer.load(clip, worker_device()), size, neighbours

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one Parquet file of pairs."""
        found = NearestImages(read_queries(task.files[QUERIES]), self.neighbours)
        images = read_packed_images(task.table("pack"), self.size, "train")
        count = search_images([found], images, self.scorer)
        write_table(found.to_table(), task.output_table(), "features")
        return {"training_images": count}


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
        self.cascade, self.models = (
            build_cascade(cascade, worker_device()),
            load_feature_models(clip, features, worker_device()),
        )
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
        swept = self.cascade.with_stages(stages)
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


# ---------------------------------------------------------------------------------------------- images


def _find_set(files: Mapping[str, str]) -> str:
    """Returns the set that a shard's files belong to; reference images have file names of their own."""
    sets = {"sample.parquet": SAMPLE_SET, "pack.parquet": VALIDATION_SET}
    return next((name for file, name in sets.items() if file in files), REFERENCE_SET)


def _read_images(set_name: str, files: Mapping[str, str], size: int) -> Iterator[NamedImage]:
    if set_name == SAMPLE_SET:
        return read_first_samples(files["sample.parquet"])
    if set_name == VALIDATION_SET:
        return read_packed_images(files["pack.parquet"], size)
    return read_reference_images(files, size)


def read_packed_images(path: str, size: int, wanted: str = "validation") -> Iterator[NamedImage]:
    """Yields the pairs of one split of a pack shard, square; row groups without any are not read."""
    from train.loader.pack_files import read_pixel_encoding
    from train.loader.row_group import decode_pixels

    column = pixels_column(size)
    with pq.ParquetFile(path) as file:
        check_kind(file.schema_arrow, path, "pack")
        stored = read_pixel_encoding(path, file.schema_arrow, column)
        names = ["key", "caption", column, *({BUCKET_COLUMN} & set(file.schema_arrow.names))]
        for number in range(file.num_row_groups):
            splits = file.read_row_group(number, ["split"])["split"].to_pylist()
            if rows := [row for row, split in enumerate(splits) if split == wanted]:
                table = file.read_row_group(number, names).take(rows)
                for row in table.to_pylist():
                    shape = stored.shapes[row.get(BUCKET_COLUMN, SQUARE)]
                    image = resize_square(decode_pixels(row[column], stored.encoding, shape), size)
                    yield row["key"], image, row["caption"]
