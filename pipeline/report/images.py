"""Images and captions of artifacts for the report: small, as data URLs."""

from __future__ import annotations

import base64
import io
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from PIL import Image

from dataprep.io import storage
from dataprep.io.failure_reasons import FORGOTTEN
from dataprep.io.parquet import KINDS, read_table
from pipeline.store.artifact import Artifact

THUMBNAIL = 96  # pixels of the longer side
DROPPED = "examples.json"  # of stage select: {filter: [{shard, key}]}, the first rows that each filter dropped
RowKey = tuple[int, str]  # (shard, key)


def encode_png_url(data: bytes) -> str:
    """Returns a PNG file as a data URL."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def encode_lossless_url(data: bytes) -> str:
    """Returns the pixels of a PNG file as a lossless WebP data URL, which is smaller."""
    with Image.open(io.BytesIO(data)) as image:
        return encode_webp_url(image, lossless=True)


def encode_webp_url(image: Image.Image, **options: Any) -> str:
    """Returns an image as a WebP data URL; ``options`` go to the encoder."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def encode_thumbnail_url(data: bytes) -> str:
    """Returns a stored image, at most `THUMBNAIL` pixels wide and high, as a WebP data URL."""
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return encode_webp_url(image, quality=85)


def read_tar_images(tar: str, names: Iterable[str]) -> dict[str, bytes]:
    """Returns the image files of a tar whose name without extension is in ``names``."""
    wanted, found = set(names), {}
    with storage.local_copy(tar) as local, tarfile.open(local) as archive:
        for member in archive:
            key, _, extension = member.name.partition(".")
            if key in wanted and extension in ("jpg", "png", "webp"):
                file = archive.extractfile(member)
                assert file is not None
                found[key] = file.read()
    return found


def collect_dropped_examples(download: Artifact, select: Artifact, count: int) -> list[dict[str, Any]]:
    """Returns reason, count and up to ``count`` examples for every filter that dropped rows."""
    dropped = read_first_dropped(select)
    groups = [
        {
            "reason": f"{step['filter']}: {step['reason']}",
            "count": step["dropped"],
            "items": load_examples(download, dropped.get(step["filter"], [])[:count]),
        }
        for step in storage.read_json(select.path("funnel.json"))
        if step["dropped"]
    ]
    if redacted := select.manifest.counters.get("redacted"):
        groups.append({"reason": (KINDS["selection"].blank or {})["reason"], "count": redacted, "items": []})
    return groups


def read_first_dropped(select: Artifact) -> dict[str, list[RowKey]]:
    """Returns the first rows that each filter dropped."""
    noted = storage.read_json(select.path(DROPPED))
    return {name: [(item["shard"], item["key"]) for item in items] for name, items in noted.items()}


def collect_kept_examples(download: Artifact, select: Artifact, count: int) -> list[dict[str, Any]]:
    """Returns ``count`` kept rows, evenly spread over the data set."""
    step = max(1, select.manifest.counters["kept"] // count) if count else 1
    places: list[RowKey] = []
    seen = 0
    for shard in select.shards:
        table = read_table(shard.files["parquet"], "selection", ["key", "keep"])
        kept = table["key"].filter(table["keep"])
        first = -seen % step
        places += [(shard.id, key) for key in kept.to_pylist()[first::step]]
        seen += len(kept)
    return load_examples(download, places[:count])


def load_examples(download: Artifact, places: Sequence[RowKey]) -> list[dict[str, Any]]:
    """Returns key, caption, note and image of each row, in order, without rows that were forgotten since."""
    shards = {shard.id: shard for shard in download.shards}
    wanted: dict[int, list[str]] = defaultdict(list)
    for shard, key in places:
        wanted[shard].append(key)
    rows: dict[str, dict[str, Any]] = {}
    images: dict[str, bytes] = {}
    for number, keys in wanted.items():
        files = shards[number].files
        table = read_table(files["parquet"], "download", ["key", "url", "caption", "error_message"])
        found = table.filter(pa.compute.is_in(table["key"], pa.array(keys, pa.string()))).to_pylist()
        rows |= {row["key"]: row for row in found}
        images |= read_tar_images(files["tar"], keys)
    items = []
    for _, key in places:
        row, data = rows[key], images.get(key)
        if row["error_message"] != FORGOTTEN:
            src = encode_thumbnail_url(data) if data else None
            items.append(
                {"key": key, "caption": row["caption"], "note": row["error_message"] or row["url"], "src": src}
            )
    return items
