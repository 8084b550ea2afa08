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

from dataprep.card.config import CardConfig
from dataprep.io.failure_reasons import FORGOTTEN

# Column names of licences in public lists, case-insensitive.
LICENCE_NAMES = ("license", "licence", "license_name", "license_url", "rights")
# Download reasons that are an opt-out of the owner.
OPT_OUTS = ("robots_txt", "robots_tag", "tdm")
SIDES = (64, 128, 256, 512, 1024, 2048)  # pixels: lower bounds of the classes of the shorter side
MOST = 12  # values of a column that are listed separately
MOST_HOSTS = 1_000_000  # hosts that are counted; of more, those with the fewest images are dropped
LISTED_HOSTS = 1_000  # hosts in the facts


@dataclass
class DataCounts:
    """Counts over all shards."""

    rows: int = 0
    kept: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)  # of rows without an image
    licences: Counter[str] = field(default_factory=Counter)  # of kept rows
    languages: Counter[str] = field(default_factory=Counter)  # of kept rows
    sides: Counter[str] = field(default_factory=Counter)  # of kept rows
    splits: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)  # of the URLs of kept rows, without "www."
    hosts_dropped: bool = False
    licence_column: str | None = None


def count_shard(download: str | Path, annotations: str | Path, selection: str | Path, counts: DataCounts) -> None:
    """Adds one shard, given as three row-aligned local Parquet files, to ``counts``."""
    names = pq.read_schema(download).names
    licence = next((name for name in names if name.lower() in LICENCE_NAMES), None)
    counts.licence_column = counts.licence_column or licence
    wanted = ["url", "status", "reason", *([licence] if licence else [])]
    fetched = pq.read_table(download, columns=wanted)
    measured = pq.read_table(annotations, columns=["language", "width", "height"])
    verdicts = pq.read_table(selection, columns=["keep", "split"])
    keep = verdicts["keep"].combine_chunks()
    counts.rows += fetched.num_rows
    counts.kept += pa.compute.sum(keep).as_py() or 0
    counts.statuses += _count_values(fetched["status"])
    counts.reasons += _count_values(fetched["reason"])
    if licence:
        counts.licences += _count_values(fetched[licence].cast(pa.string()).fill_null("not given").filter(keep))
    counts.languages += _count_values(measured["language"].filter(keep))
    sides = pa.compute.min_element_wise(measured["width"], measured["height"]).filter(keep).to_pylist()
    counts.sides += Counter(_classify_side(side) for side in sides if side is not None)
    counts.splits += _count_values(verdicts["split"])
    _count_hosts(fetched["url"].filter(keep).to_pylist(), counts)


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


def build_facts(counts: DataCounts, listing: Mapping[str, Any], config: CardConfig) -> dict[str, Any]:
    """Returns the counts as JSON-able data in a fixed order; ``listing`` is the dumped config of the listing."""
    source = {name: listing[name] for name in ("source", "path", "limit") if listing.get(name) is not None}
    if listing["source"] == "scenes":
        source["note"] = "rendered by this program: nothing in it is from a third party"
    order = [f"below {SIDES[0]}", *(f"from {side}" for side in SIDES)]
    return {
        "about": config.model_dump(),
        "source": source,
        "rows": counts.rows,
        "kept": counts.kept,
        "statuses": _sort_by_count(counts.statuses),
        "reasons": _sort_by_count(counts.reasons),
        "opt_outs": {reason: counts.reasons[reason] for reason in OPT_OUTS},
        "forgotten": counts.reasons[FORGOTTEN],
        "licence_column": counts.licence_column,
        "licences": _sort_by_count(counts.licences),
        "languages": _sort_by_count(counts.languages),
        "sides": {name: counts.sides[name] for name in order if counts.sides[name]},
        "splits": _sort_by_count(counts.splits),
        "hosts": {
            "number": len(counts.hosts),
            "exact": not counts.hosts_dropped,
            "most_images": dict(list(_sort_by_count(counts.hosts).items())[:LISTED_HOSTS]),
        },
    }


def _sort_by_count(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def list_most_frequent(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Returns the first `MOST` values with their counts, and the sum of the others."""
    rows = list(counts.items())
    rest = sum(count for _, count in rows[MOST:])
    return [*rows[:MOST], *([(f"{len(rows) - MOST} others", rest)] if rest else [])]
