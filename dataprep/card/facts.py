"""What a dataset is made of, as counts: statuses, reasons, licences, languages, sizes, hosts.

`count_shard` adds up shard by shard, so memory does not grow with the rows; `build_facts` gives the counts as JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.card.audit import AuditCounts, build_audit, is_audited
from dataprep.card.config import CardConfig
from dataprep.io.failure_reasons import FORGOTTEN
from dataprep.io.source_column import SOURCE_COLUMN

# Column names of licences in public lists, case-insensitive.
LICENCE_NAMES = ("listed_licence", "license", "licence", "license_name", "license_url", "rights")
NOT_GIVEN = "not given"
SYNTHETIC = "scenes"  # the kind of source that is the embedded corpus
# Download reasons that are an opt-out of the owner.
OPT_OUTS = ("robots_txt", "robots_tag", "tdm", "hash_opt_out")
SIDES = (64, 128, 256, 512, 1024, 2048)  # pixels: lower bounds of the classes of the shorter side
MOST = 12  # values of a column that are listed separately
MOST_HOSTS = 1_000_000  # hosts that are counted; of more, those with the fewest images are dropped
LISTED_HOSTS = 1_000  # hosts in the facts


@dataclass
class SourceData:
    """Counts of the rows of one source."""

    rows: int = 0
    kept: int = 0
    licences: Counter[str] = field(default_factory=Counter)  # of kept rows, as the source's column has them


@dataclass
class DataCounts:
    """Counts over all shards; those of ``sources`` are by the name of a source, "" where it is the only one."""

    rows: int = 0
    kept: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)  # of rows without an image
    sources: dict[str, SourceData] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)  # of kept rows
    sides: Counter[str] = field(default_factory=Counter)  # of kept rows
    splits: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)  # of the URLs of kept rows, without "www."
    hosts_dropped: bool = False
    audit: AuditCounts = field(default_factory=AuditCounts)  # of kept rows
    licence_column: str | None = None


def count_shard(
    download: str | Path,
    annotations: str | Path,
    selection: str | Path,
    counts: DataCounts,
    scores: str | Path | None = None,
) -> None:
    """Adds one shard, given as row-aligned local Parquet files, to ``counts``."""
    names = pq.read_schema(download).names
    licence = next((name for name in names if name.lower() in LICENCE_NAMES), None)
    counts.licence_column = counts.licence_column or licence
    others = [name for name in (licence, SOURCE_COLUMN if SOURCE_COLUMN in names else None) if name]
    fetched = pq.read_table(download, columns=["url", "status", "reason", *others])
    measured = pq.read_table(annotations, columns=["language", "width", "height", "caption"])
    verdicts = pq.read_table(selection, columns=["keep", "split"])
    keep = verdicts["keep"].combine_chunks()
    counts.rows += fetched.num_rows
    counts.kept += pa.compute.sum(keep).as_py() or 0
    counts.statuses += _count_values(fetched["status"])
    counts.reasons += _count_values(fetched["reason"])
    own = _find_source(fetched, counts)
    own.rows += fetched.num_rows
    own.kept += pa.compute.sum(keep).as_py() or 0
    given = fetched[licence].cast(pa.string()) if licence else pa.nulls(fetched.num_rows, pa.string())
    own.licences += _count_values(pa.chunked_array([given.fill_null(NOT_GIVEN).filter(keep)]))
    counts.languages += _count_values(measured["language"].filter(keep))
    sides = pa.compute.min_element_wise(measured["width"], measured["height"]).filter(keep).to_pylist()
    counts.sides += Counter(_classify_side(side) for side in sides if side is not None)
    counts.splits += _count_values(verdicts["split"])
    counts.audit.add_captions(measured["caption"].filter(keep).to_pylist())
    for path in (annotations, scores):
        audited = [name for name in pq.read_schema(path).names if is_audited(name)] if path is not None else []
        if path is not None and audited:
            counts.audit.add_measured(pq.read_table(path, columns=audited).filter(keep).to_pydict())
    _count_hosts(fetched["url"].filter(keep).to_pylist(), counts)


def _find_source(fetched: pa.Table, counts: DataCounts) -> SourceData:
    """Returns the counts of a shard's source. A shard without the column is of the only source."""
    names = [""]
    if SOURCE_COLUMN in fetched.column_names:
        names = pa.compute.unique(fetched[SOURCE_COLUMN].drop_null()).to_pylist() or [FORGOTTEN]  # every row is blanked
    return counts.sources.setdefault(names[0], SourceData())


def _count_hosts(urls: Iterable[str | None], counts: DataCounts) -> None:
    for url in urls:
        try:
            parts = urlsplit(url or "")
            host = parts.hostname if parts.scheme in ("http", "https") else None
        except ValueError:  # such as "http://[": never fetched, so at most a forgotten row's
            host = None
        if host:
            counts.hosts[host.removeprefix("www.")] += 1
    if len(counts.hosts) > MOST_HOSTS:
        counts.hosts = Counter(dict(counts.hosts.most_common(MOST_HOSTS // 2)))
        counts.hosts_dropped = True


def _count_values(column: Any) -> Counter[str]:
    """Counts the values of a column that are not null."""
    found = pa.compute.value_counts(column.drop_null()).to_pylist()
    return Counter({str(item["values"]): item["counts"] for item in found})


def _classify_side(side: int) -> str:
    below = [bound for bound in SIDES if side >= bound]
    return f"from {below[-1]}" if below else f"below {SIDES[0]}"


def build_facts(counts: DataCounts, sources: Mapping[str, Mapping[str, Any]], config: CardConfig) -> dict[str, Any]:
    """Returns the counts as JSON-able data in a fixed order; ``sources``: name -> dumped config of the source."""
    order = [f"below {SIDES[0]}", *(f"from {side}" for side in SIDES)]
    described = [_describe_source(name, source, counts) for name, source in sources.items()]
    licences: Counter[str] = Counter()
    for source in described:
        licences.update(source["licences"])
    return {
        "about": config.model_dump(),
        "sources": described,
        "rows": counts.rows,
        "kept": counts.kept,
        "statuses": _sort_by_count(counts.statuses),
        "reasons": _sort_by_count(counts.reasons),
        "opt_outs": {reason: counts.reasons[reason] for reason in OPT_OUTS},
        "forgotten": counts.reasons[FORGOTTEN],
        "licence_column": counts.licence_column,
        "licences": _sort_by_count(licences),
        "languages": _sort_by_count(counts.languages),
        "sides": {name: counts.sides[name] for name in order if counts.sides[name]},
        "splits": _sort_by_count(counts.splits),
        "hosts": {
            "number": len(counts.hosts),
            "exact": not counts.hosts_dropped,
            "most_images": dict(list(_sort_by_count(counts.hosts).items())[:LISTED_HOSTS]),
        },
        "audit": build_audit(counts.audit, counts.hosts),
    }


def _describe_source(name: str, source: Mapping[str, Any], counts: DataCounts) -> dict[str, Any]:
    """Returns what is known of a source; rows without a licence of their own have the source's."""
    own = counts.sources.get(name, SourceData())
    licences = Counter(own.licences)
    if source.get("licence") and (rest := licences.pop(NOT_GIVEN, 0)):
        licences[source["licence"]] += rest
    keys = ("source", "path", "subset", "split", "limit", "licence", "weight")
    described = {"name": name} | {key: source[key] for key in keys if source.get(key) is not None}
    if source["source"] == SYNTHETIC:
        described["note"] = "rendered by this program: nothing in it is from a third party"
    return described | {"rows": own.rows, "kept": own.kept, "licences": _sort_by_count(licences)}


def describe_source(source: Mapping[str, Any]) -> str:
    """Returns a source of the facts in words: its name if it has one, kind and path, and what else is known."""
    known = [source["source"], *(str(source[key]) for key in ("path", "note") if key in source)]
    known += [f"{key} {source[key]}" for key in ("subset", "split", "limit", "weight", "licence") if key in source]
    return (f"{source['name']}: " if source["name"] else "") + ", ".join(known)


def is_synthetic(facts: Mapping[str, Any]) -> bool:
    """Returns whether all images are rendered by this program."""
    return all(source["source"] == SYNTHETIC for source in facts["sources"])


def list_web_sources(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the sources whose images were fetched from the web by URL."""
    kinds = ("table", "public", *(("dataset",) if facts["hosts"]["number"] else ()))
    return [source for source in facts["sources"] if source["source"] in kinds]


def _sort_by_count(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def list_most_frequent(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Returns the first `MOST` values with their counts, and the sum of the others."""
    rows = list(counts.items())
    rest = sum(count for _, count in rows[MOST:])
    return [*rows[:MOST], *([(f"{len(rows) - MOST} others", rest)] if rest else [])]
