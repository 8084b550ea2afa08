"""A folder of images as a source: one row per image, with the caption beside it or from a captions table."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from dataprep.images.formats import IMAGE_EXTENSIONS, has_image_extension
from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.parquet import ROOT_KEY
from dataprep.listing.columns import CAPTION_NAMES, FILE_HASH, pick_column
from dataprep.listing.config import ListingConfig
from dataprep.listing.table_reader import BATCH_ROWS, read_batches

FILE_NAMES = ("file_name", "filename", "file", "path", "image")  # columns of a captions table, best first
CAPTION_TABLES = ("metadata.jsonl", "metadata.csv", "captions.csv", "captions.jsonl")
CAPTION_SUFFIXES = (".txt", ".caption")


def find_files(config: ListingConfig) -> list[str]:
    """Returns the images and caption files below the folder, sorted. Raises UserError if there is no image."""
    assert config.path is not None
    path = config.path
    fs, inner = storage.filesystem(path)
    if not fs.isdir(inner):
        raise UserError(f"listing.path {path}: no such folder; check the path")
    names = storage.list_files(path)
    if not any(map(has_image_extension, names)):
        raise UserError(f"listing.path {path}: no image ({' '.join(IMAGE_EXTENSIONS)}) in the folder; check the path")
    captions = (*CAPTION_SUFFIXES, ".csv", ".jsonl")
    return [storage.join(path, name) for name in names if has_image_extension(name) or name.endswith(captions)]


def read_tables(config: ListingConfig, hashes: bool) -> Iterator[pa.Table]:
    """Yields one row per image below the folder, sorted by path; without ``hashes`` the file hash is null."""
    assert config.path is not None
    root = storage.absolute(config.path)
    files = [file[len(config.path.rstrip("/")) + 1 :] for file in find_files(config)]
    images = [name for name in files if has_image_extension(name)]
    present = set(files)
    listed = _read_captions_table(config, root, present)
    captions = [listed.get(name) or _read_caption_file(root, name, present) for name in images]
    if not any(captions):
        raise UserError(
            f"listing.path {config.path}: no image has a caption; put name.txt beside name.jpg, or a "
            "captions.csv with columns file_name and caption into the folder"
        )
    for start in range(0, len(images), BATCH_ROWS):
        part = slice(start, start + BATCH_ROWS)
        sha256 = [storage.sha256_file(storage.join(root, name))[0] if hashes else None for name in images[part]]
        columns = {"url": images[part], "caption": captions[part], FILE_HASH: sha256}
        table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        yield table.replace_schema_metadata({ROOT_KEY: root.encode()})


def _read_caption_file(root: str, name: str, present: set[str]) -> str:
    stem = name.rpartition(".")[0]
    for suffix in CAPTION_SUFFIXES:
        if stem + suffix in present:
            return storage.read_bytes(storage.join(root, stem + suffix)).decode("utf-8", errors="replace").strip()
    return ""


def _read_captions_table(config: ListingConfig, root: str, present: set[str]) -> dict[str, str]:
    """Returns {file: caption} from the first of `CAPTION_TABLES` in the folder; empty if there is none."""
    name = next((name for name in CAPTION_TABLES if name in present), None)
    captions: dict[str, str] = {}
    if name is not None:
        for table in read_batches(storage.join(root, name)):
            file_column = pick_column(name, table.column_names, None, FILE_NAMES, "path")
            caption_column = pick_column(
                name, table.column_names, config.caption_column, CAPTION_NAMES, "caption_column"
            )
            files, texts = table[file_column].to_pylist(), table[caption_column].to_pylist()
            captions.update({str(file): str(text or "") for file, text in zip(files, texts, strict=True)})
    return captions
