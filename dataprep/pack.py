"""Packs kept pairs as Parquet, with one binary column of pixels per training resolution.

Column ``pixels_<size>`` holds RGB images: squares, or with aspect buckets the shape of the row's bucket. Its field
metadata has ``encoding`` ("raw": uint8 HWC bytes; a name in `PIXEL_ENCODINGS`: a file) and ``shapes`` of the buckets.
Row groups are small, so that a shuffle can seek, and each has one split and one bucket; validation rows come last in a
shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataprep.images.aspect_buckets import find_nearest_bucket
from dataprep.images.decode import decode_rgb, read_shard_images
from dataprep.images.faces import blur_boxes
from dataprep.images.formats import MAX_PIXELS
from dataprep.images.pixel_encodings import PIXEL_ENCODINGS
from dataprep.images.resize import resize_to_shape
from dataprep.io.caption_mix import CAPTION
from dataprep.io.errors import UserError
from dataprep.io.failure_reasons import SUCCESS
from dataprep.io.pack_format import (
    BUCKET_COLUMN,
    CAPTIONS_KEY,
    ENCODING_KEY,
    ORIGINAL_SIDE,
    SHAPES_KEY,
    pixels_column,
)
from dataprep.io.parquet import read_table, write_table
from dataprep.io.source_column import SOURCE_COLUMN
from dataprep.pack_config import PackConfig

VALIDATION = "validation"  # the split whose rows come last


def pack_shard(
    tar_path: str | Path,
    download_path: str | Path,
    selection_path: str | Path | None,
    out_path: str | Path,
    config: PackConfig,
    max_pixels: int = MAX_PIXELS,
    annotations_path: str | Path | None = None,
    source_captions: Mapping[str, Sequence[str]] | None = None,
    captions_path: str | Path | None = None,
    scores_path: str | Path | None = None,
) -> dict[str, int]:
    """Packs the selected rows of one download shard, in their order.

    Columns: key, caption, captions, split, original_side, listed_source (of several sources), bucket (with
    ``config.aspects``), one pixel column per resolution, and the columns ``config.features`` of the scores at
    ``scores_path``. ``captions`` lists those that ``config.captions`` names,
    or ``source_captions`` of the shard's source; one that a row lacks is replaced by the row's own caption. They are
    columns of the download shard, or of ``captions_path``, which is aligned with it. Rows are sorted by split
    ("validation" last), then by bucket. ``selection_path`` None packs every row that has an image, as split "train".
    ``annotations_path`` is read for the faces of ``config.blur_faces``.

    Returns:
        Counters: rows, train, validation.

    Raises:
        UserError: a column of captions is missing.
        ValueError: tar, table, selection and captions do not belong together.
    """
    downloads, names = _read_downloads(download_path, config, source_captions or {}, captions_path)
    splits = _read_splits(downloads, selection_path)
    rows: list[dict[str, Any]] = []
    described = {row["key"]: row for row in downloads.to_pylist()}
    shapes = {size: config.shapes(size) for size in config.resolutions}
    buckets = list(shapes[config.resolutions[0]])
    faces = _read_faces(annotations_path, downloads) if config.blur_faces is not None else {}
    for key, image in _read_selected_images(tar_path, splits, max_pixels):
        if config.blur_faces is not None:
            image = blur_boxes(image, faces[key], config.blur_faces)
        row = _describe_row(described[key], splits[key], names)
        row[BUCKET_COLUMN] = bucket = find_nearest_bucket(shapes[config.resolutions[0]], *image.shape[:2])
        for size in config.resolutions:
            row[pixels_column(size)] = _encode_pixels(
                resize_to_shape(image, shapes[size][bucket], config.crop), size, config
            )
        rows.append(row)
    if len(rows) != len(splits):
        raise ValueError(f"{tar_path}: {len(rows)} of {len(splits)} selected images; download the shard again")
    rows.sort(key=lambda row: (row["split"] == VALIDATION, buckets.index(row[BUCKET_COLUMN])))
    schema = _build_schema(config, names, SOURCE_COLUMN in downloads.column_names)
    table = pa.table({name: [row[name] for row in rows] for name in schema.names}, schema=schema)
    if config.features:
        assert scores_path is not None
        table = _add_features(table, scores_path, config.features)
    write_pack(table, out_path, config)
    validation = sum(row["split"] == VALIDATION for row in rows)
    return {"rows": table.num_rows, "train": table.num_rows - validation, "validation": validation}


def _describe_row(found: Mapping[str, Any], split: str, names: Sequence[str]) -> dict[str, Any]:
    """Returns the columns of a row that do not depend on its image's pixels."""
    own = found[CAPTION]
    return {
        "key": found["key"],
        "caption": own,
        "split": split,
        "captions": [found[name] or own for name in names],
        SOURCE_COLUMN: found.get(SOURCE_COLUMN),
        ORIGINAL_SIDE: min(found["original_width"], found["original_height"]),
    }


def _add_features(table: pa.Table, path: str | Path, names: Sequence[str]) -> pa.Table:
    """Returns the table with columns of the scores at ``path``, found by their keys.

    Raises ValueError for a row that has none.
    """
    scores = read_table(path, "scores", ["key", *names])
    places = pc.index_in(table["key"], scores["key"].combine_chunks())
    for name in names:
        found = scores[name].take(places)
        if found.null_count:
            raise ValueError(f"{path}: {found.null_count} kept rows have no {name}; score the shard again")
        table = table.append_column(pa.field(name, found.type, nullable=False), found)
    return table


def write_pack(table: pa.Table, path: str | Path, config: PackConfig) -> None:
    """Writes a pack shard; a row group ends where the split or the bucket changes.

    With page checksums, to detect damage; pixel columns have no dictionaries and no statistics.
    """
    pixels = [*(pixels_column(size) for size in config.resolutions), *config.features]
    raw = [pixels_column(size) for size in config.resolutions if config.encoding_of(size) == "raw"]
    others = [name for name in table.column_names if name not in pixels]
    paths = [f"{name}.list.element" if name == "captions" else name for name in others]
    compression = dict.fromkeys(paths, "zstd") | dict.fromkeys(pixels, "none")
    write_table(
        table,
        path,
        "pack",
        row_groups=_split_row_groups(table, config),
        compression=compression | dict.fromkeys(raw, config.compression),
        use_dictionary=[name for name in ("split", SOURCE_COLUMN, BUCKET_COLUMN) if name in others],
        write_statistics=others,
        write_page_checksum=True,
    )


def _split_row_groups(table: pa.Table, config: PackConfig) -> list[int]:
    kinds = table.select([name for name in ("split", BUCKET_COLUMN) if name in table.column_names]).to_pylist()
    runs = [sum(1 for _ in run) for _, run in groupby(kinds)]
    most = config.row_group_rows
    return [min(most, rows - start) for rows in runs for start in range(0, rows, most)]


def _read_downloads(
    path: str | Path, config: PackConfig, by_source: Mapping[str, Sequence[str]], captions_path: str | Path | None
) -> tuple[pa.Table, list[str]]:
    """Returns the columns of a shard that a pack is made of, and the names of the captions to pack."""
    table = read_table(path, "download")
    if captions_path is not None:
        written = read_table(captions_path, "columns")
        if not written["key"].combine_chunks().equals(table["key"].combine_chunks()):
            raise ValueError(f"{captions_path}: not the rows of its download shard; write the captions again")
        for name in written.column_names:
            if name not in ("key", *table.column_names):
                table = table.append_column(name, written[name])
    several = [SOURCE_COLUMN] if SOURCE_COLUMN in table.column_names else []
    sources = pa.compute.unique(table[SOURCE_COLUMN].drop_null()).to_pylist() if several else []
    if len(sources) > 1:
        raise ValueError(f"{path}: rows of the sources {', '.join(sources)} in one shard; make the listing again")
    source = sources[0] if sources else ""
    names = list(by_source.get(source, config.captions))
    if missing := [name for name in names if name not in table.column_names]:
        key = f"listing.sources.{source}.captions" if source in by_source else "pack.captions"
        own = ", ".join(name for name in table.column_names if pa.types.is_string(table.schema.field(name).type))
        raise UserError(f"{key}={missing[0]}: the listing has no such column (text columns: {own})")
    wanted = ("key", CAPTION, "status", "original_width", "original_height", *several, *names)
    return table.select(list(dict.fromkeys(wanted))), names


def _read_splits(downloads: pa.Table, selection_path: str | Path | None) -> dict[str, str]:
    """Returns {key: split} of the rows to pack."""
    if selection_path is None:
        statuses = zip(downloads["key"].to_pylist(), downloads["status"].to_pylist(), strict=True)
        return {key: "train" for key, status in statuses if status == SUCCESS}
    selection = read_table(selection_path, "selection")
    if not selection["key"].combine_chunks().equals(downloads["key"].combine_chunks()):
        raise ValueError(f"{selection_path}: not the rows of its download shard; select again")
    return {row["key"]: row["split"] for row in selection.to_pylist() if row["keep"]}


def _read_faces(path: str | Path | None, downloads: pa.Table) -> dict[str, np.ndarray]:
    """Returns {key: boxes (N, 4)} of every row with an image."""
    assert path is not None, "pack.blur_faces without annotations"
    table = read_table(path, "annotations", ["key", "face_boxes"])
    if not table["key"].combine_chunks().equals(downloads["key"].combine_chunks()):
        raise ValueError(f"{path}: not the rows of its download shard; annotate again")
    rows = table.to_pylist()
    boxes = {row["key"]: row["face_boxes"] for row in rows}
    return {key: np.reshape(found, (-1, 4)) for key, found in boxes.items() if found is not None}


def _read_selected_images(
    tar_path: str | Path, splits: dict[str, str], max_pixels: int
) -> Iterator[tuple[str, np.ndarray]]:
    for key, data in read_shard_images(tar_path):
        if key in splits:
            yield key, decode_rgb(data, max_pixels)


def _encode_pixels(image: np.ndarray, size: int, config: PackConfig) -> bytes:
    """Encodes uint8 HWC RGB for the column of resolution ``size``."""
    encoding = config.encoding_of(size)
    if encoding == "raw":
        return image.tobytes()
    options = PIXEL_ENCODINGS[encoding].options(config, image.shape[:2])
    done, data = cv2.imencode(f".{encoding}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    assert done, encoding
    return data.tobytes()


def _build_schema(config: PackConfig, captions: Sequence[str], several_sources: bool) -> pa.Schema:
    fields = [pa.field(name, pa.string()) for name in ("key", "caption", "split")]
    fields.append(pa.field(ORIGINAL_SIDE, pa.int32()))
    if several_sources:
        fields.append(pa.field(SOURCE_COLUMN, pa.string()))
    if config.aspects:
        fields.append(pa.field(BUCKET_COLUMN, pa.string()))
    named = {CAPTIONS_KEY: json.dumps(list(captions)).encode()}
    fields.append(pa.field("captions", pa.list_(pa.string()), metadata=named))
    for size in config.resolutions:
        described = {ENCODING_KEY: config.encoding_of(size).encode()}
        if config.aspects:
            described[SHAPES_KEY] = json.dumps(config.shapes(size)).encode()
        fields.append(pa.field(pixels_column(size), pa.binary(), metadata=described))
    return pa.schema(fields)
