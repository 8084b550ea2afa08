"""``imagen-ray trace``: any sample of a run and its way back, from what was trained on it to the row of the source."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dataprep import storage
from dataprep.schema import SAMPLE_DIGITS, SHARD_DIGITS, UserError, sample_key, split_key
from pipeline.store import Artifact, Run, Shard

KEY = re.compile(rf"\d{{{SHARD_DIGITS + SAMPLE_DIGITS},}}")
IMAGE = re.compile(r"\.(jpg|png|webp)$")
BIG = 64  # bytes of a binary value that are too many to show


def trace(folder: str, target: str) -> list[dict[str, Any]]:
    """Everything that the run in ``folder`` knows of a sample, given by its key or its URL: a dict a row of that URL.

    Raises:
        UserError: no such key or URL in the run, with the nearest key there is.
    """
    run = Run(folder)
    run.record()
    artifacts = run.artifacts()
    return [_describe(artifacts, shard, row) for shard, row in find(run, artifacts, target)]


def find(run: Run, artifacts: Mapping[str, Artifact], target: str) -> list[tuple[int, int]]:
    """(shard, row in it) of the sample with this key, or of every row with this URL."""
    rows = artifacts.get("download") or artifacts.get("listing")
    if rows is None:
        raise UserError(f"{run.root}: its list is not read yet; `imagen-ray run` it as far as listing first")
    if KEY.fullmatch(target):
        return [_by_key(rows, target)]
    found = [
        (shard.id, index)
        for shard in rows.shards
        for index, url in enumerate(read_columns(shard.files["parquet"], ["url"])["url"].to_pylist())
        if url == target
    ]
    if not found:
        raise UserError(_unknown(rows, target))
    return found


def _by_key(rows: Artifact, key: str) -> tuple[int, int]:
    shard, row = split_key(key)
    counts = {item.id: pq_rows(item.files["parquet"]) for item in rows.shards if item.id == shard}
    if row < counts.get(shard, 0):
        return shard, row
    raise UserError(_unknown(rows, key))


def _unknown(rows: Artifact, target: str) -> str:
    """What there is instead of ``target``."""
    last = rows.shards[-1].id
    if KEY.fullmatch(target) or target.isdecimal():
        asked, row = split_key(target.zfill(SHARD_DIGITS + SAMPLE_DIGITS))
        nearest = min((item.id for item in rows.shards), key=lambda index: abs(index - asked))
        shard = next(item for item in rows.shards if item.id == nearest)
        row = min(row, pq_rows(shard.files["parquet"]) - 1)
        return (
            f"{target}: no such key; a key is {SHARD_DIGITS} digits for the shard (0 to {last}) and {SAMPLE_DIGITS} "
            f"for its row; the nearest is {sample_key(nearest, row)}"
        )
    what = "URL" if "://" in target else "key or URL"
    first = sample_key(rows.shards[0].id, 0)
    return f"{target}: no such {what} in the run; give a URL as it stands in the list, or a key such as {first}"


def read_columns(path: str, columns: Sequence[str] | None = None) -> Any:
    """Some columns of a Parquet file of any kind and version, as an Arrow table; those it lacks are left out."""
    with storage.local_copy(path) as local, pq.ParquetFile(local) as file:
        names = [name for name in columns if name in file.schema_arrow.names] if columns is not None else None
        return file.read(columns=names)


def pq_rows(path: str) -> int:
    """The rows of a Parquet file, from its footer."""
    with storage.local_copy(path) as local:
        return int(pq.read_metadata(local).num_rows)


# ---------------------------------------------------------------------------------------------- one sample


def _describe(artifacts: Mapping[str, Artifact], shard: int, row: int) -> dict[str, Any]:
    key = sample_key(shard, row)
    listed = _row(artifacts, "listing", shard, row)
    fetched = _row(artifacts, "download", shard, row)
    told: dict[str, Any] = {"key": key}
    told["url"] = (fetched or listed or {}).get("url")
    told["caption"] = (fetched or listed or {}).get("caption")
    told["source"] = _source(artifacts, shard, row, listed or {})
    told["download"] = _download(artifacts, shard, key, fetched, set(listed or {}))
    told["annotations"] = _without(_row(artifacts, "annotate", shard, row), "key", "caption", "sha256")
    told["scores"] = _without(_row(artifacts, "score", shard, row), "key")
    told["selection"] = _without(_row(artifacts, "select", shard, row), "key")
    told["pack"] = _place(artifacts, "pack", shard, key, ["split"])
    told["embed"] = _place(artifacts, "embed", shard, key, ["length", "dim", "codec"])
    told["trained"] = _trained(artifacts, told)
    return told


def _shard(artifacts: Mapping[str, Artifact], stage: str, shard: int) -> Shard | None:
    artifact = artifacts.get(stage)
    return next((item for item in artifact.shards if item.id == shard), None) if artifact else None


def _row(artifacts: Mapping[str, Artifact], stage: str, shard: int, row: int) -> dict[str, Any] | None:
    """A row of a stage whose tables are aligned with the listing's; None where the stage is not finished."""
    found = _shard(artifacts, stage, shard)
    if found is None:
        return None
    values = read_columns(found.files["parquet"]).slice(row, 1).to_pylist()[0]
    return {"fingerprint": artifacts[stage].manifest.fingerprint} | {name: _short(v) for name, v in values.items()}


def _short(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex() if len(value) <= BIG else f"{len(value)} bytes"
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def _without(row: dict[str, Any] | None, *names: str) -> dict[str, Any] | None:
    return {name: value for name, value in row.items() if name not in names} if row is not None else None


def _source(artifacts: Mapping[str, Artifact], shard: int, row: int, listed: Mapping[str, Any]) -> dict[str, Any]:
    """Where the row stands in the user's list, counted from 0, and what else stood in it."""
    if "listing" not in artifacts:
        return {}
    manifest = artifacts["listing"].manifest
    config = manifest.config["listing"]
    told = {"source": config["source"], "path": config["path"], "row": shard * config["rows_per_shard"] + row}
    told |= {"file": artifacts["listing"].path(f"{shard:0{SHARD_DIGITS}d}.parquet"), "row_in_file": row}
    columns = {name: value for name, value in listed.items() if name not in ("url", "caption", "fingerprint")}
    return told | {"fingerprint": manifest.fingerprint, "columns": columns}


def _download(
    artifacts: Mapping[str, Artifact], shard: int, key: str, row: dict[str, Any] | None, listed: set[str]
) -> dict[str, Any] | None:
    """Status and reason, sizes, hash, and the file in the tar."""
    if row is None:
        return None
    told = {
        name: value for name, value in row.items() if name not in {"key", "url", "caption"} | listed - {"fingerprint"}
    }
    found = _shard(artifacts, "download", shard)
    assert found is not None
    if row["sha256"] is not None:
        with storage.local_copy(found.files["tar"]) as local, tarfile.open(local) as archive:
            for member in archive:
                if member.name.startswith(f"{key}.") and IMAGE.search(member.name):
                    told |= {"tar": found.files["tar"], "member": member.name, "bytes": member.size}
    return told


def _place(
    artifacts: Mapping[str, Artifact], stage: str, shard: int, key: str, columns: list[str]
) -> dict[str, Any] | None:
    """The file and row of a sample in what holds kept samples alone; None where it is not in."""
    found = _shard(artifacts, stage, shard)
    if found is None:
        return None
    path = found.files["parquet"]
    table = read_columns(path, ["key", *columns])
    index = table["key"].index(key).as_py()
    if index < 0:
        return None
    told = {"fingerprint": artifacts[stage].manifest.fingerprint, "file": path, "row": index}
    return told | table.drop_columns("key").slice(index, 1).to_pylist()[0]


def _trained(artifacts: Mapping[str, Artifact], told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The finished stages that learned from the sample, how they used it, and about how many times."""
    stages = []
    for name, artifact in artifacts.items():
        use, loop, rows = _use(artifacts, name, told)
        if use is not None:
            passes = loop["steps"] * loop["batch_size"] / max(1, rows) if rows else 0.0
            entry = {"stage": name, "fingerprint": artifact.manifest.fingerprint, "use": use}
            stages.append(entry | {"passes": round(passes, 2)})
    return stages


def _use(artifacts: Mapping[str, Artifact], name: str, told: Mapping[str, Any]) -> tuple[str | None, Any, int]:
    """What a stage used of the sample (None: nothing), its training's config, and the rows that it was one of."""
    config = artifacts[name].manifest.config
    pictured = told["download"] is not None and told["download"]["sha256"] is not None
    if name == "encoder" and pictured and config["encoder"]["pretrain"]:
        return "caption", config["encoder"]["pretrain"], artifacts["download"].manifest.counters["success"]
    if name == "clip" and pictured and config["clip.train"]:
        return "picture and caption", config["clip.train"], artifacts["download"].manifest.counters["success"]
    if name.startswith("train.") and told["pack"] is not None:
        packed = artifacts["pack"].manifest.counters
        if told["pack"]["split"] == "validation":
            return "validation alone", config[name], 0
        return "picture and caption", config[name], packed["rows"] - packed["validation"]
    return None, None, 0


# ---------------------------------------------------------------------------------------------- for a person


def render(told: Mapping[str, Any]) -> Group:
    """One sample as a terminal shows it."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name in ("url", "caption"):
        table.add_row(name, Text(str(told[name])))
    for section in ("source", "download", "annotations", "scores", "selection", "pack", "embed"):
        values = told[section]
        table.add_row("", "")
        table.add_row(Text(section, style="bold"), "" if values else Text(_absent(section, told), style="dim"))
        for name, value in _flat(values or {}):
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            table.add_row(f"  {name}", Text("" if value is None else shown))
    table.add_row("", "")
    table.add_row(Text("trained", style="bold"), "" if told["trained"] else Text("no finished stage", style="dim"))
    for entry in told["trained"]:
        passes = "" if not entry["passes"] else f", about {entry['passes']:g} times"
        table.add_row(f"  {entry['stage']}", f"{entry['use']}{passes} ({entry['fingerprint']})")
    return Group(Text(str(told["key"]), style="bold"), table)


def _absent(section: str, told: Mapping[str, Any]) -> str:
    selection = told["selection"]
    if section in ("pack", "embed") and selection is not None and not selection["keep"]:
        return "not in it: dropped by select"
    return "the stage is not finished"


def _flat(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += (
            [(f"{name}.{inner}", item) for inner, item in value.items()] if isinstance(value, dict) else [(name, value)]
        )
    return rows
