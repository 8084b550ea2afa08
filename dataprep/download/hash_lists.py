"""Lists of hashes of images that must not be stored: opted out, or known to be illegal.

A file is compared as it was fetched, before it is decoded; its pixels before they are cropped or encoded. Nothing of an
image on a list is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from dataprep.download.config import HASH_DIGITS, HashListConfig
from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.failure_reasons import FailedError
from dataprep.io.inputs import read_input

KEY = "download.hash_lists"


@dataclass(frozen=True)
class HashList:
    """A list: hashes of files, or perceptual hashes as uint64 (N,)."""

    config: HashListConfig
    digests: frozenset[bytes]
    phash_N: np.ndarray

    def refuse(self) -> FailedError:
        """Returns the error of an image on the list."""
        return FailedError(self.config.reason, f"on the list {PurePosixPath(self.config.path).name}")


class HashLists:
    """All lists of a config. About 100 bytes per hash in each download process; a perceptual hash takes 8."""

    def __init__(self, lists: Sequence[HashList]) -> None:
        self.files = [item for item in lists if item.config.kind != "phash"]
        self.pictures = [item for item in lists if item.config.kind == "phash"]

    @classmethod
    def read(cls, configs: Sequence[HashListConfig]) -> HashLists:
        """Reads the lists; raises UserError for a missing file, a missing column, or what is no hash."""
        return cls([_read_list(config) for config in configs])

    def check_file(self, body: bytes) -> None:
        """Raises FailedError if a list has the sha256 or md5 of the file."""
        for item in self.files:
            digest = hashlib.new(item.config.kind, body, usedforsecurity=False).digest()
            if digest in item.digests:
                raise item.refuse()

    def check_pixels(self, image_HWC: np.ndarray) -> None:
        """Raises FailedError if a list has a perceptual hash near that of the image (uint8 RGB)."""
        if not self.pictures:
            return
        from dataprep.images.perceptual_hash import compute_perceptual_hash

        phash = np.uint64(compute_perceptual_hash(image_HWC))
        for item in self.pictures:
            if (np.bitwise_count(item.phash_N ^ phash) <= item.config.distance).any():
                raise item.refuse()


def _read_list(config: HashListConfig) -> HashList:
    values = [_parse_hash(config, place, text) for place, text in _read_texts(config)]
    if not values:
        raise UserError(f"{KEY}: {config.path} has no hash; give a list, or leave it out")
    phash_N = np.frombuffer(b"".join(values), ">u8").astype(np.uint64) if config.kind == "phash" else np.zeros(0)
    return HashList(config, frozenset(() if config.kind == "phash" else values), phash_N)


def _parse_hash(config: HashListConfig, place: str, text: str) -> bytes:
    digits = HASH_DIGITS[config.kind]
    try:
        value = bytes.fromhex(text) if len(text) == digits else b""
    except ValueError:
        value = b""
    if not value:
        raise UserError(
            f"{KEY}: {config.path}, {place}: {text[:80]!r} is no {config.kind} ({digits} hexadecimal digits); "
            "correct the line, or the kind"
        )
    return value


def _read_texts(config: HashListConfig) -> Iterator[tuple[str, str]]:
    """Yields the place and the text of each hash."""
    if config.column is not None:
        yield from _read_column(config, config.column)
        return
    data = read_input(config.path, f"{KEY}: path", "correct the path")
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{KEY}: {config.path} is not a text file; name the column of a Parquet file") from error
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].replace(",", " ").split()
        if words:  # the first word: sha256sum and md5sum write the file's name behind it
            yield f"line {number}", words[0]


def _read_column(config: HashListConfig, column: str) -> Iterator[tuple[str, str]]:
    import pyarrow.parquet as pq

    if not storage.exists(config.path):
        raise UserError(f"{KEY}: path={config.path}: no such file; correct the path")
    with storage.local_copy(config.path) as local:
        try:
            names = pq.read_schema(local).names
        except (OSError, ValueError) as error:
            raise UserError(f"{KEY}: {config.path} is no Parquet file; a text file has no column") from error
        if column not in names:
            raise UserError(f"{KEY}: {config.path} has no column {column}; it has {', '.join(names)}")
        for row, value in enumerate(pq.read_table(local, columns=[column])[column].to_pylist(), 1):
            if value is not None:
                yield f"row {row}", str(value)
