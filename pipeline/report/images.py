"""Pictures and captions taken out of artifacts for the report, small and as data URLs."""

from __future__ import annotations

import base64
import io
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from PIL import Image

from dataprep import storage
from dataprep.schema import read_table
from pipeline.store import Artifact, Shard

THUMBNAIL = 96  # pixels, the longer side


def png_url(data: bytes) -> str:
    """A PNG file as a data URL."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def thumbnail_url(data: bytes) -> str:
    """A stored image, at most `THUMBNAIL` pixels a side, as a WebP data URL."""
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


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
    """For every reason: how many rows it dropped, and the first ``each`` of them with picture and caption."""
    counts: Counter[str] = Counter()
    picked: dict[str, list[tuple[Shard, Mapping[str, Any]]]] = defaultdict(list)
    for shard, row in _joined(download, select):
        if not row["keep"]:
            counts[row["reason"]] += 1
            if len(picked[row["reason"]]) < each:
                picked[row["reason"]].append((shard, row))
    return [
        {"reason": reason, "count": count, "items": _items(picked[reason])} for reason, count in counts.most_common()
    ]


def kept_examples(download: Artifact, select: Artifact, count: int) -> list[dict[str, Any]]:
    """``count`` kept rows, evenly spread over the set."""
    rows = [(shard, row) for shard, row in _joined(download, select) if row["keep"]]
    step = max(1, len(rows) // count) if count else 1
    return _items(rows[::step][:count])


def _joined(download: Artifact, select: Artifact) -> Iterable[tuple[Shard, dict[str, Any]]]:
    selections = {shard.id: shard for shard in select.shards}
    columns = ["key", "url", "caption", "status", "error_message"]
    for shard in download.shards:
        if shard.id in selections:
            pairs: pa.Table = read_table(shard.files["parquet"], "download", columns)
            verdicts = read_table(selections[shard.id].files["parquet"], "selection", ["keep", "reason"])
            for row, verdict in zip(pairs.to_pylist(), verdicts.to_pylist(), strict=True):
                yield shard, row | verdict


def _items(rows: Sequence[tuple[Shard, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    by_shard: dict[int, tuple[Shard, list[str]]] = {}
    for shard, row in rows:
        by_shard.setdefault(shard.id, (shard, []))[1].append(row["key"])
    images: dict[str, bytes] = {}
    for shard, keys in by_shard.values():
        images |= read_members(shard.files["tar"], keys)
    items = []
    for _, row in rows:
        data = images.get(row["key"])
        note = row["error_message"] or row["url"]
        items.append({"caption": row["caption"], "note": note, "src": thumbnail_url(data) if data else None})
    return items
