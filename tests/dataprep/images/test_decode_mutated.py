"""Thousands of damaged images and captions: no crash, each has an image or a reason.

``python tests/dataprep/images/test_decode_mutated.py 100000`` runs more and prints the count of each reason.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from dataprep.download.config import DownloadConfig, FetchConfig
from dataprep.download.shard import download_shard
from dataprep.images.decode import decode_rgb
from dataprep.io.failure_reasons import REASONS
from dataprep.io.keys import shard_name
from dataprep.io.parquet import read_table, write_table
from tests.helpers.images import encoded, mutate, picture, read_member

ROWS_PER_SHARD = 500
CAPTIONS = (
    "two small red circles left of a blue square",
    "一个红色的大圆在左边",
    "été 🎨 \u202eright to left\u202c",
    "",
    "tab\tnew\nline\r\0zero",
    "a" * 5000,
)


def originals() -> list[bytes]:
    """One small file of every format and mode."""
    colours = picture(1, 56, 40)
    image = Image.fromarray(colours)
    alpha = Image.fromarray(np.dstack([colours, colours[..., 0]]))
    grey16 = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x8825] = 6, {1: "N", 2: (52.0, 30.0, 0.0)}
    frames = {"save_all": True, "append_images": [image.rotate(90)]}
    files = [encoded(image, "JPEG", exif=exif), encoded(image, "JPEG", progressive=True)]
    files += [encoded(image.convert("CMYK"), "JPEG"), encoded(image.convert("L"), "JPEG", quality=40)]
    files += [encoded(image), encoded(alpha), encoded(image.convert("P"), transparency=3), encoded(grey16)]
    files += [encoded(image.convert("1")), encoded(image, "PNG", exif=exif), encoded(image, "PNG", **frames)]
    files += [encoded(image, "WEBP"), encoded(alpha, "WEBP", lossless=True), encoded(image, "WEBP", **frames)]
    files += [encoded(image, "GIF"), encoded(image.convert("P"), "GIF", **frames), encoded(image, "BMP")]
    return [*files, encoded(image, "TIFF"), encoded(image, "TIFF", compression="tiff_lzw"), encoded(grey16, "TIFF")]


def mutated_caption(rng: np.random.Generator) -> str:
    """A caption with a few random Unicode characters, without surrogates, which Parquet cannot hold."""
    text = list(CAPTIONS[int(rng.integers(len(CAPTIONS)))])
    for _ in range(int(rng.integers(0, 6))):
        code = int(rng.integers(0x110000))
        text.insert(int(rng.integers(len(text) + 1)), chr(code if not 0xD800 <= code < 0xE000 else 0xFFFD))
    return "".join(text)


def run(count: int, folder: Path) -> Counter[str]:
    """Downloads ``count`` mutated pairs from a folder; returns the count of each reason ("" for none)."""
    files = originals()
    found: Counter[str] = Counter()
    config = DownloadConfig(fetch=FetchConfig(), image_size=32, max_pixels=1_000_000)
    for shard, start in enumerate(range(0, count, ROWS_PER_SHARD)):
        names, captions = [], []
        for index in range(start, min(start + ROWS_PER_SHARD, count)):
            rng = np.random.default_rng([7, index])
            names.append(f"{index}.bin")
            captions.append(mutated_caption(rng))
            (folder / names[-1]).write_bytes(mutate(files[index % len(files)], rng))
        table = pa.table({"url": names, "caption": captions})
        table = table.replace_schema_metadata({"imagen_ray.root": str(folder)})
        write_table(table, folder / "listing.parquet", "listing")
        download_shard(folder / "listing.parquet", shard, folder, config)
        rows = read_table(folder / shard_name(shard, "parquet"), "download").to_pylist()
        assert [row["caption"] for row in rows] == captions
        found += check(rows, folder / shard_name(shard, "tar"))
        for name in names:
            (folder / name).unlink()
    return found


def check(rows: list[dict[str, Any]], tar_path: Path) -> Counter[str]:
    """Checks that every row has a decodable image, its caption and its JSON, or a reason."""
    found: Counter[str] = Counter()
    with tarfile.open(tar_path) as tar:
        members = {member.name: read_member(tar, member.name) for member in tar.getmembers()}
    for row in rows:
        found[row["reason"] or ""] += 1
        if row["reason"] is None:
            assert row["status"] == "success" and row["error_message"] is None
            pixels = decode_rgb(members.pop(f"{row['key']}.jpg"))
            assert pixels.shape == (row["height"], row["width"], 3)
            assert members.pop(f"{row['key']}.txt").decode() == row["caption"]
            assert json.loads(members.pop(f"{row['key']}.json"))["caption"] == row["caption"]
        else:
            assert row["status"] == REASONS[row["reason"]].status and row["error_message"]
    assert members == {}
    return found


def test_mutated_pairs(tmp_path: Path) -> None:
    found = run(4000, tmp_path)
    assert found.total() == 4000
    assert found[""] > 800 and {"not_image", "truncated", "damaged", "pixels"} <= set(found)


def test_the_originals_decode() -> None:
    for data in originals():
        turned = Image.open(io.BytesIO(data)).getexif().get(0x0112) == 6
        assert decode_rgb(data).shape == ((56, 40, 3) if turned else (40, 56, 3))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(dict(run(int(sys.argv[1]), Path(scratch)).most_common()))
