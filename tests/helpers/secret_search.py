"""Searches every file of a run for what was in a sample."""

from __future__ import annotations

import base64
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from dataprep.io.parquet import read_table
from tests.helpers.runs import COPY, VICTIM, Made, caption, embedding, stored_image, url


def list_secrets(made: Made) -> dict[str, bytes]:
    """Returns everything that must not be found in any file, by name."""
    found: dict[str, bytes] = {}
    for row in (VICTIM, COPY):
        key = f"{row // 5:05d}{row % 5:04d}"
        image = stored_image(made.artifacts["download"], key)
        found |= {f"url {row}": url(row).encode(), f"caption {row}": caption(row).encode(), "image": image}
        found[f"embedding {row}"] = embedding(caption(row))
    found["note"] = f"rare-{VICTIM}".encode()
    annotations = read_table(made.artifacts["annotate"].files()[1], "annotations").to_pylist()[VICTIM % 5]
    found["thumbnail"], found["sha256 as features"] = annotations["thumbnail"], bytes.fromhex(annotations["sha256"])
    packed = next(
        row for row in read_table(made.artifacts["pack"].files()[1], "pack").to_pylist() if row["key"] == "000010002"
    )
    return found | {"pixels 16": packed["pixels_16"], "pixels 32": packed["pixels_32"]}


def unpack_file(path: Path) -> Iterator[bytes]:
    """Yields a file's bytes and everything inside: tar members, Parquet values, images of pages."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".tar":
        with tarfile.open(path) as archive:
            for member in archive:
                yield archive.extractfile(member).read()  # type: ignore[union-attr]
    elif path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            yield str(file.metadata.to_dict()).encode()
            for column in file.read().columns:
                for value in column.to_pylist():
                    yield value if isinstance(value, bytes) else str(value).encode()
    elif path.suffix == ".html":
        for encoded in re.findall(rb"data:image/\w+;base64,([A-Za-z0-9+/=]+)", data):
            yield base64.b64decode(encoded)


def find_secrets(root: Path, wanted: dict[str, bytes]) -> set[str]:
    """Returns which of ``wanted`` are in the run; images in pages are compared by pixels."""
    found = set()
    small = Image.open(io.BytesIO(wanted["image"])).convert("RGB").resize((12, 12), Image.Resampling.BOX)
    for path in sorted(item for item in root.rglob("*") if item.is_file()):
        for value in unpack_file(path):
            found |= {name for name, secret in wanted.items() if secret in value}
            if path.suffix == ".html" and value[:4] in (b"RIFF", b"\x89PNG"):
                other = Image.open(io.BytesIO(value)).convert("RGB").resize((12, 12), Image.Resampling.BOX)
                if np.abs(np.asarray(small, np.int16) - np.asarray(other, np.int16)).mean() < 4:
                    found.add("image in a page")
    return found
