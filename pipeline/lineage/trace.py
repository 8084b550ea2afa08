"""``imagen-ray trace``: the history of a sample, from the row of its source to the stages trained on it."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.keys import SAMPLE_DIGITS, SHARD_DIGITS, sample_key, shard_name, split_key
from dataprep.listing.config import ListingConfig, SourceConfig
from dataprep.listing.writer import SOURCES_FILE
from pipeline.stages.base import Learning, Rows, StageType
from pipeline.stages.graph import STAGES, stage_type
from pipeline.stages.initial_weights import describe_origin, read_origin
from pipeline.stages.listing import ListingStageConfig
from pipeline.store.artifact import Artifact, Shard
from pipeline.store.run import Run

KEY = re.compile(rf"\d{{{SHARD_DIGITS + SAMPLE_DIGITS},}}")
IMAGE = re.compile(r"\.(jpg|png|webp)$")
MAX_SHOWN_BYTES = 64  # of a binary value; of longer ones only the length is shown


def trace_sample(folder: str, target: str) -> list[dict[str, Any]]:
    """Returns everything that the run in ``folder`` records of a sample: one dict per row with this key or URL.

    Raises:
        UserError: no such key or URL in the run; names the nearest key.
    """
    run = Run(folder)
    run.record()
    artifacts = run.artifacts()
    return [_describe_sample(artifacts, shard, row) for shard, row in find_sample(run, artifacts, target)]


def find_sample(run: Run, artifacts: Mapping[str, Artifact], target: str) -> list[tuple[int, int]]:
    """Returns (shard, row in it) of the sample with this key, or of every row with this URL."""
    rows = artifacts.get("download") or artifacts.get("listing")
    if rows is None:
        raise UserError(f"{run.root}: stage listing is not finished; `imagen-ray run` it at least that far first")
    if KEY.fullmatch(target):
        return [_find_key(rows, target)]
    found = [
        (shard.id, index)
        for shard in rows.shards
        for index, url in enumerate(read_columns(shard.files["parquet"], ["url"])["url"].to_pylist())
        if url == target
    ]
    if not found:
        raise UserError(_describe_unknown(rows, target))
    return found


def _find_key(rows: Artifact, key: str) -> tuple[int, int]:
    shard, row = split_key(key)
    counts = {item.id: count_rows(item.files["parquet"]) for item in rows.shards if item.id == shard}
    if row < counts.get(shard, 0):
        return shard, row
    raise UserError(_describe_unknown(rows, key))


def _describe_unknown(rows: Artifact, target: str) -> str:
    """Returns a message with the nearest key to ``target``, or the form of a key."""
    last = rows.shards[-1].id
    if KEY.fullmatch(target) or target.isdecimal():
        wanted, row = split_key(target.zfill(SHARD_DIGITS + SAMPLE_DIGITS))
        nearest = min((item.id for item in rows.shards), key=lambda index: abs(index - wanted))
        shard = next(item for item in rows.shards if item.id == nearest)
        row = min(row, count_rows(shard.files["parquet"]) - 1)
        return (
            f"{target}: no such key; a key is {SHARD_DIGITS} digits for the shard (0 to {last}) and {SAMPLE_DIGITS} "
            f"for its row; the nearest is {sample_key(nearest, row)}"
        )
    what = "URL" if "://" in target else "key or URL"
    first = sample_key(rows.shards[0].id, 0)
    return f"{target}: no such {what} in the run; give a URL as in the list, or a key such as {first}"


def read_columns(path: str, columns: Sequence[str] | None = None) -> Any:
    """Returns columns of a Parquet file of any kind and version as an Arrow table; missing columns are skipped."""
    with storage.local_copy(path) as local, pq.ParquetFile(local) as file:
        names = [name for name in columns if name in file.schema_arrow.names] if columns is not None else None
        return file.read(columns=names)


def count_rows(path: str) -> int:
    """Returns the number of rows of a Parquet file, from its footer."""
    with storage.local_copy(path) as local:
        return int(pq.read_metadata(local).num_rows)


# ---------------------------------------------------------------------------------------------- one sample


def _describe_sample(artifacts: Mapping[str, Artifact], shard: int, row: int) -> dict[str, Any]:
    key = sample_key(shard, row)
    listed = _read_row(artifacts, "listing", shard, row)
    fetched = _read_row(artifacts, "download", shard, row)
    trace: dict[str, Any] = {"key": key}
    trace["url"] = (fetched or listed or {}).get("url")
    trace["caption"] = (fetched or listed or {}).get("caption")
    trace["source"] = _describe_source(artifacts, shard, row, listed or {})
    trace["download"] = _describe_download(artifacts, shard, key, fetched, set(listed or {}))
    for name, kind in STAGES.items():
        if kind.trace is not None:
            trace[kind.trace.title] = _read_view(artifacts, name, kind, shard, row)
    trace["trained"] = _list_trained(artifacts, trace)
    return trace


def _find_shard(artifacts: Mapping[str, Artifact], stage: str, shard: int) -> Shard | None:
    artifact = artifacts.get(stage)
    return next((item for item in artifact.shards if item.id == shard), None) if artifact else None


def _read_row(artifacts: Mapping[str, Artifact], stage: str, shard: int, row: int) -> dict[str, Any] | None:
    """Returns a row of a stage whose tables are aligned with the listing's; None if the stage is not finished."""
    found = _find_shard(artifacts, stage, shard)
    if found is None:
        return None
    values = read_columns(found.files["parquet"]).slice(row, 1).to_pylist()[0]
    return {"fingerprint": artifacts[stage].manifest.fingerprint} | {
        name: _format_value(v) for name, v in values.items()
    }


def _format_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex() if len(value) <= MAX_SHOWN_BYTES else f"{len(value)} bytes"
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def _without(row: dict[str, Any] | None, *names: str) -> dict[str, Any] | None:
    return {name: value for name, value in row.items() if name not in names} if row is not None else None


def _describe_source(
    artifacts: Mapping[str, Artifact], shard: int, row: int, listed: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the row's position in the user's list, counted from 0, and its other columns."""
    if "listing" not in artifacts:
        return {}
    manifest = artifacts["listing"].manifest
    config = ListingStageConfig.from_manifest(manifest).listing
    first, part = _find_source(artifacts["listing"], config, shard)
    place = (shard - first) * config.rows_per_shard + row
    source: dict[str, Any] = {"source": part.source, "path": part.path, "row": place}
    source |= {"file": artifacts["listing"].path(shard_name(shard, "parquet")), "row_in_file": row}
    columns = {name: value for name, value in listed.items() if name not in ("url", "caption", "fingerprint")}
    return source | {"fingerprint": manifest.fingerprint, "columns": columns}


def _find_source(listing: Artifact, config: ListingConfig, shard: int) -> tuple[int, SourceConfig]:
    """Returns the first shard of the source of a listing shard, and that source."""
    if not config.sources:
        return 0, config
    firsts = {name: int(counts["first_shard"]) for name, counts in listing.read_json(SOURCES_FILE).items()}
    name = max((name for name in firsts if firsts[name] <= shard), key=lambda name: firsts[name])
    return firsts[name], config.sources[name]


def _describe_download(
    artifacts: Mapping[str, Artifact], shard: int, key: str, row: dict[str, Any] | None, listed: set[str]
) -> dict[str, Any] | None:
    """Returns status and reason, sizes, hash, and the file in the tar."""
    if row is None:
        return None
    facts = {
        name: value
        for name, value in row.items()
        if name not in {"key", "url", "caption"} | listed - {"fingerprint", "reason", "error_message"}
    }
    found = _find_shard(artifacts, "download", shard)
    assert found is not None
    if row["sha256"] is not None:
        with storage.local_copy(found.files["tar"]) as local, tarfile.open(local) as archive:
            for member in archive:
                if member.name.startswith(f"{key}.") and IMAGE.search(member.name):
                    facts |= {"tar": found.files["tar"], "member": member.name, "bytes": member.size}
    return facts


def _read_view(
    artifacts: Mapping[str, Artifact], stage: str, kind: StageType, shard: int, row: int
) -> dict[str, Any] | None:
    """Returns a sample's row in a stage's table; None if it has none or the stage is not finished."""
    assert kind.trace is not None
    if kind.rows is Rows.ALIGNED:
        return _without(_read_row(artifacts, stage, shard, row), *kind.trace.hidden)
    return _read_kept_row(artifacts, stage, shard, sample_key(shard, row), kind.trace.columns or ())


def _read_kept_row(
    artifacts: Mapping[str, Artifact], stage: str, shard: int, key: str, columns: Sequence[str]
) -> dict[str, Any] | None:
    """Returns file, row number and columns of a sample in a table of selected samples."""
    found = _find_shard(artifacts, stage, shard)
    if found is None:
        return None
    path = found.files["parquet"]
    table = read_columns(path, ["key", *columns])
    index = table["key"].index(key).as_py()
    if index < 0:
        return None
    facts = {"fingerprint": artifacts[stage].manifest.fingerprint, "file": path, "row": index}
    return facts | table.drop_columns("key").slice(index, 1).to_pylist()[0]


def _list_trained(artifacts: Mapping[str, Artifact], trace: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the finished stages trained on the sample, how they used it, and the expected number of passes."""
    stages = []
    for name, artifact in artifacts.items():
        kind = stage_type(name)
        learning = kind.learned(artifact.manifest) if kind and kind.learned else None
        if learning is None:
            continue
        use, rows = _find_use(artifacts, learning, trace)
        if use is not None:
            passes = learning.steps * learning.batch_size / max(1, rows) if rows else 0.0
            entry = {"stage": name, "fingerprint": artifact.manifest.fingerprint, "use": use}
            origin = read_origin(artifact)
            began: dict[str, Any] = {"began_from": describe_origin(origin)} if origin is not None else {}
            stages.append({**entry, "passes": round(passes, 2), **began})
    return stages


def _find_use(
    artifacts: Mapping[str, Artifact], learning: Learning, trace: Mapping[str, Any]
) -> tuple[str | None, int]:
    """Returns how a stage used the sample (None: not at all), and the number of rows that it was trained on."""
    if learning.rows is Rows.ALIGNED:
        downloaded = trace["download"] is not None and trace["download"]["sha256"] is not None
        return (learning.use, artifacts["download"].manifest.counters["success"]) if downloaded else (None, 0)
    if trace["pack"] is None:
        return None, 0
    if trace["pack"]["split"] == "validation":
        return "validation only", 0
    packed = artifacts["pack"].manifest.counters
    return learning.use, packed["rows"] - packed["validation"]


# ---------------------------------------------------------------------------------------------- for the terminal


def render_trace(trace: Mapping[str, Any]) -> Group:
    """Returns one dict of `trace_sample` for the terminal."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name in ("url", "caption"):
        table.add_row(name, Text(str(trace[name])))
    for section in ("source", "download", *(kind.trace.title for kind in STAGES.values() if kind.trace)):
        values = trace[section]
        table.add_row("", "")
        table.add_row(
            Text(section, style="bold"), "" if values else Text(_describe_absence(section, trace), style="dim")
        )
        for name, value in _flatten_values(values or {}):
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            table.add_row(f"  {name}", Text("" if value is None else shown))
    table.add_row("", "")
    table.add_row(Text("trained", style="bold"), "" if trace["trained"] else Text("no finished stage", style="dim"))
    for entry in trace["trained"]:
        passes = "" if not entry["passes"] else f", about {entry['passes']:g} times"
        began = f"; began from {entry['began_from']}" if "began_from" in entry else ""
        table.add_row(f"  {entry['stage']}", Text(f"{entry['use']}{passes} ({entry['fingerprint']}){began}"))
    return Group(Text(str(trace["key"]), style="bold"), table)


def _describe_absence(section: str, trace: Mapping[str, Any]) -> str:
    selection = trace["selection"]
    if section in ("pack", "embed") and selection is not None and not selection["keep"]:
        return "not included: dropped by select"
    return "stage not finished"


def _flatten_values(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += (
            [(f"{name}.{inner}", item) for inner, item in value.items()] if isinstance(value, dict) else [(name, value)]
        )
    return rows
