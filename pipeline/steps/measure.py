"""Features of pictures, shard by shard: of samples, of the run's validation images, of a reference from outside, and of
a sampler's sweep. What is measured on them is `pipeline.steps.evaluate`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dataprep import storage
from dataprep.decode import IMAGE_EXTENSIONS, decode_rgb, read_shard_rgb, resize_square
from dataprep.grammar import Claim
from dataprep.pack import pixels_column
from dataprep.schema import BUCKET_COLUMN, SQUARE, UserError, check_kind, read_table, write_table
from eval.cascade import Cascade
from eval.clip import ClipScorer
from eval.composition import check
from eval.features import OWN, Extractor, FeaturesConfig, load_extractor
from eval.protocol import Point
from eval.settings import CascadeConfig
from pipeline.fingerprint import digest
from pipeline.sampling import open_cascade
from pipeline.steps.models import device
from pipeline.store import Shard
from train.data import decode_pixels
from train.reader import stored_pixels

FOLDER, SWEEP = "features", "sweep"  # of the artifact
SAMPLE, VALIDATION, REFERENCE = "sample", "validation", "reference"  # the sets of pictures
KINDS = (SAMPLE, VALIDATION, REFERENCE)
READ_ROWS = 256  # pictures at a time
IMAGES_PER_SHARD = 500

Item = TypeVar("Item")
Picture = tuple[str, np.ndarray, str]  # id, uint8 (H, W, 3), caption


# ---------------------------------------------------------------------------------------------- workers


class FeatureWorker:
    """Features of one shard of samples, of validation pairs or of reference pictures.

    ``hashes`` are those of the files that feature models come from: with other ones a shard is another shard.
    """

    def __init__(
        self, clip: Any, features: Sequence[FeaturesConfig], sizes: Sequence[int], hashes: Mapping[str, str]
    ) -> None:
        self.models, self.sizes = _models(clip, features), sizes

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        """One Parquet file, none where the shard has no picture to measure."""
        kind = KINDS[shard.id % len(KINDS)]
        tables = []
        for size in self.sizes:
            for part in _parts(_pictures(kind, shard.files, size), READ_ROWS):
                tables.append(self._measure(kind, part))
            if kind == SAMPLE:  # they have the size that they have
                break
        if tables:
            write_table(pa.concat_tables(tables), out / f"{shard.id:05d}.parquet", "features")
        return {f"{kind}_pictures": sum(table.num_rows for table in tables)}

    def _measure(self, kind: str, pictures: Sequence[Picture]) -> pa.Table:
        ids, images, captions = zip(*pictures, strict=True)
        return features_table(
            self.models, kind, images[0].shape[0], ids, images, captions if kind != REFERENCE else None
        )


class SweepWorker:
    """Draws the prompts at one setting of a stage's sampler, and measures the pictures. A shard is a setting."""

    def __init__(
        self,
        cascade: CascadeConfig,
        clip: Any,
        features: Sequence[FeaturesConfig],
        hashes: Mapping[str, str],
        stage: str,
        points: Sequence[Point],
        prompts: Sequence[tuple[str, str | None]],
        seed: int,
    ) -> None:
        with open_cascade(cascade, device()) as self.cascade:
            self.models = _models(clip, features)
        self.stage, self.points, self.prompts, self.seed = stage, points, prompts, seed

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        """One Parquet file."""
        settings = self.points[shard.id].settings
        stages = [
            replace(stage, entry=stage.entry.model_copy(update={"sampling": settings}))
            if stage.entry.name == self.stage
            else stage
            for stage in self.cascade.stages
        ]
        swept = Cascade(stages, self.cascade.encoder, self.cascade.device)
        texts = [prompt for prompt, _ in self.prompts]
        images = [np.asarray(image) for image in swept(texts, seed=self.seed, stop_at=self.stage).images]
        table = features_table(self.models, SWEEP, images[0].shape[0], texts, images, texts)
        right = [
            check(image, Claim.model_validate_json(claim))["all"] if claim else None
            for image, (_, claim) in zip(images, self.prompts, strict=True)
        ]
        table = table.append_column("right", pa.array(right, pa.bool_()))
        write_table(table, out / f"{shard.id:05d}.parquet", "features")
        return {"sweep_pictures": len(images)}


def _models(clip: Any, features: Sequence[FeaturesConfig]) -> dict[str, Extractor]:
    """The run's CLIP always, for scores and retrieval, and whatever else is asked for."""
    own = ClipScorer.load(clip, device())
    return {OWN: own} | {config.key: load_extractor(config, own, device()) for config in features}


# ---------------------------------------------------------------------------------------------- tables


def features_table(
    models: Mapping[str, Extractor],
    kind: str,
    size: int,
    ids: Sequence[str],
    images: Sequence[np.ndarray],
    captions: Sequence[str] | None,
) -> pa.Table:
    """id, set, size, caption, ``text`` (the CLIP's features of the caption) and ``image_<model>`` of each picture.

    Of a caption a digest is kept, which is all that retrieval needs: whether two are the same.
    """
    columns: dict[str, Any] = {
        "id": list(ids),
        "set": [kind] * len(ids),
        "size": pa.array([size] * len(ids), pa.int32()),
        "caption": [digest(caption)[:16] for caption in captions] if captions is not None else [""] * len(ids),
    }
    own = models[OWN]
    assert isinstance(own, ClipScorer)
    if captions is not None:
        columns["text"] = _column(own.text_features(captions))
    for name, model in models.items():
        columns[f"image_{name}"] = _column(model.image_features(images))
    return pa.table(columns)


def _column(features_ND: np.ndarray) -> pa.FixedSizeListArray:
    flat = np.ascontiguousarray(features_ND, np.float32).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), features_ND.shape[1])


def as_array(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of vectors as float32 (N, D)."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat: np.ndarray = array.flatten().to_numpy()
    return flat.reshape(len(array), -1)


# ---------------------------------------------------------------------------------------------- pictures


def _pictures(kind: str, files: Mapping[str, str], size: int) -> Iterator[Picture]:
    if kind == SAMPLE:
        return _samples(files["sample.parquet"])
    if kind == VALIDATION:
        return validation_pictures(files["pack.parquet"], size)
    return _reference(files, size)


def _samples(path: str) -> Iterator[Picture]:
    """The first candidate of each judged prompt: what the model draws without a choice."""
    for row in read_table(path, "samples", ["role", "prompt", "seed", "index", "png"]).to_pylist():
        if row["role"] == "evaluate" and row["index"] == 0:
            image = np.asarray(Image.open(io.BytesIO(row["png"])).convert("RGB"))
            yield f"{row['prompt']}|{row['seed']}", image, row["prompt"]


def validation_pictures(path: str, size: int) -> Iterator[Picture]:
    """The pairs of a pack shard that are held out of training, squares; row groups without one are not read."""
    column = pixels_column(size)
    with pq.ParquetFile(path) as file:
        check_kind(file.schema_arrow, path, "pack")
        stored = stored_pixels(path, file.schema_arrow, column)
        names = ["key", "caption", column, *({BUCKET_COLUMN} & set(file.schema_arrow.names))]
        for group in range(file.num_row_groups):
            splits = file.read_row_group(group, ["split"])["split"].to_pylist()
            if rows := [row for row, split in enumerate(splits) if split == "validation"]:
                table = file.read_row_group(group, names).take(rows)
                for row in table.to_pylist():
                    shape = stored.shapes[row.get(BUCKET_COLUMN, SQUARE)]
                    image = resize_square(decode_pixels(row[column], stored.encoding, shape), size)
                    yield row["key"], image, row["caption"]


def _reference(files: Mapping[str, str], size: int) -> Iterator[Picture]:
    for name, path in files.items():
        if path.endswith(".tar"):
            for key, image in read_shard_rgb(path):
                yield f"{name}/{key}", resize_square(image, size), ""
        else:
            yield name, resize_square(decode_rgb(Path(path).read_bytes()), size), ""


def reference_files(folder: str) -> list[str]:
    """The tars below ``folder``, or where there are none its images; UserError where there are neither."""
    names = storage.list_files(folder) if storage.exists(folder) else []
    tars = [name for name in names if name.endswith(".tar")]
    found = tars or [name for name in names if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS]
    if not found:
        raise UserError(f"evaluate.reference={folder}: no images and no tars there; name a folder that has them")
    return [storage.join(folder, name) for name in found]


def reference_shards(folder: str) -> list[Shard]:
    """Shards of the reference: a tar each, or some hundred images each."""
    paths = reference_files(folder)
    each = 1 if paths[0].endswith(".tar") else IMAGES_PER_SHARD
    shards = []
    for number, part in enumerate(_parts(iter(paths), each)):
        files = {path[len(folder) :].lstrip("/"): path for path in part}
        shards.append(Shard(number, files, {name: storage.sha256_file(path)[0] for name, path in files.items()}))
    return shards


def _parts(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    return iter(lambda: list(islice(items, size)), [])


def numbered(shards: Sequence[Shard], kind: str) -> list[Shard]:
    """``shards`` with ids that say which set they are of, so that one pool works on all sets."""
    return [replace(shard, id=shard.id * len(KINDS) + KINDS.index(kind)) for shard in shards]


def claims_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str | None]]:
    """(prompt, JSON of its claim) of sample rows."""
    return [(row["prompt"], row["claim"]) for row in rows]


def checks_of(row: Mapping[str, Any]) -> dict[str, bool]:
    """What the composition checker said of a sample row."""
    found: dict[str, bool] = json.loads(row["checks"])
    return found
