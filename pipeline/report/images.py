"""Pictures and captions taken out of artifacts for the report, small and as data URLs."""

from __future__ import annotations

import base64
import io
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from PIL import Image

from dataprep import storage
from dataprep.redact import BLANK, FORGOTTEN
from dataprep.schema import read_table
from pipeline.store import Artifact

THUMBNAIL = 96  # pixels, the longer side
NOTED = "examples.json"  # of the selection: {filter: [{"shard", "key"}]}
Place = tuple[int, str]  # (shard, key)


def png_url(data: bytes) -> str:
    """A PNG file as a data URL."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def lossless_url(data: bytes) -> str:
    """A PNG file as a data URL of fewer bytes: the same pixels as WebP."""
    with Image.open(io.BytesIO(data)) as image:
        return webp_url(image, lossless=True)


def webp_url(image: Image.Image, **options: Any) -> str:
    """A picture as a WebP data URL; ``options`` are the encoder's."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnail_url(data: bytes) -> str:
    """A stored image, at most `THUMBNAIL` pixels a side, as a WebP data URL."""
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return webp_url(image, quality=85)


def read_members(tar: str, names: Iterable[str]) -> dict[str, bytes]:
    """The files of a tar whose name without its extension is in ``names`` and that are images."""
    wanted, found = set(names), {}
    with storage.local_copy(tar) as local, tarfile.open(local) as archive:
        for member in archive:
            key, _, extension = member.name.partition(".")
            if key in wanted and extension in ("jpg", "png", "webp"):
                file = archive.extractfile(member)
                assert file is not None
                found[key] = file.read()
    return found


def dropped_examples(download: Artifact, select: Artifact, each: int) -> list[dict[str, Any]]:
    """For every filter that dropped rows: its reason, how many, and up to ``each`` of them with picture and caption."""
    places = first_dropped(select, each)
    groups = [
        {
            "reason": f"{step['filter']}: {step['reason']}",
            "count": step["dropped"],
            "items": pictures_at(download, places.get(step["filter"], [])[:each]),
        }
        for step in storage.read_json(select.path("funnel.json"))
        if step["dropped"]
    ]
    if redacted := select.manifest.counters.get("redacted"):
        groups.append({"reason": BLANK["selection"]["reason"], "count": redacted, "items": []})
    return groups


def first_dropped(select: Artifact, each: int) -> dict[str, list[Place]]:
    """A filter -> the first rows that it dropped: as the selection has noted them, else looked for in its tables."""
    if select.has(NOTED):
        noted = storage.read_json(select.path(NOTED))
        return {name: [(item["shard"], item["key"]) for item in items] for name, items in noted.items()}
    found: dict[str, list[Place]] = defaultdict(list)
    for shard in select.shards:
        table = read_table(shard.files["parquet"], "selection", ["key", "reason"])
        for key, reason in zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True):
            name = (reason or "").partition(":")[0]
            if name and len(found[name]) < each:
                found[name].append((shard.id, key))
    return found


def kept_examples(download: Artifact, select: Artifact, count: int) -> list[dict[str, Any]]:
    """``count`` kept rows, evenly spread over the set."""
    step = max(1, select.manifest.counters["kept"] // count) if count else 1
    places: list[Place] = []
    seen = 0
    for shard in select.shards:
        table = read_table(shard.files["parquet"], "selection", ["key", "keep"])
        kept = table["key"].filter(table["keep"])
        first = -seen % step
        places += [(shard.id, key) for key in kept.to_pylist()[first::step]]
        seen += len(kept)
    return pictures_at(download, places[:count])


def pictures_at(download: Artifact, places: Sequence[Place]) -> list[dict[str, Any]]:
    """Caption, note and picture of each place, in order; what is forgotten by now is left out."""
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
        images |= read_members(files["tar"], keys)
    items = []
    for _, key in places:
        row, data = rows[key], images.get(key)
        if row["error_message"] != FORGOTTEN:
            src = thumbnail_url(data) if data else None
            items.append({"caption": row["caption"], "note": row["error_message"] or row["url"], "src": src})
    return items
