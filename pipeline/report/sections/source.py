"""The source: records and rows, rows without an image by name, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from dataprep.io import storage
from dataprep.listing.account import LEFT_OUT, NOTED
from dataprep.listing.writer import ACCOUNT_FILE, SOURCES_FILE
from pipeline.report.section import ReportInputs, ReportSection, SectionContent
from pipeline.store.artifact import Artifact

EXAMPLES = 12  # rows named of each reason
SHOWN = 5  # names of each kind of what was left out
PREFIX = "reason_"
WITHOUT_CAPTION = "no caption"


def collect_source(inputs: ReportInputs) -> SectionContent:
    """Collects the tables."""
    listing = inputs.artifacts["listing"]
    counters = listing.manifest.counters
    tables: list[dict[str, Any]] = [
        {"title": "Records of the source", "columns": ["what", "#count"], "rows": list(_count_records(counters))}
    ]
    if listing.has(SOURCES_FILE):
        tables.append(_count_by_source(listing))
    wanted = {name.removeprefix(PREFIX) for name in counters if name.startswith(PREFIX)}
    wanted |= {WITHOUT_CAPTION} if counters.get("without_caption") else set()
    if wanted:
        columns = ["reason", "row", "details"]
        tables.append({"title": "Rows of incomplete records", "columns": columns, "rows": _name_rows(listing, wanted)})
    account = listing.read_json(ACCOUNT_FILE)["named"] if listing.has(ACCOUNT_FILE) else {}
    if found := [kind for kind in (*LEFT_OUT, *NOTED) if counters.get(kind)]:
        rows = [
            (LEFT_OUT.get(kind) or NOTED[kind], counters[kind], ", ".join(account.get(kind, [])[:SHOWN]))
            for kind in found
        ]
        tables.append({"title": "Left out and noted", "columns": ["what", "#count", "the first"], "rows": rows})
    return SectionContent({"tables": tables})


def _count_by_source(listing: Artifact) -> dict[str, Any]:
    """Returns the table of several sources: what each is, and what became of its rows."""
    described = listing.manifest.config["listing"]["sources"]
    rows = []
    for name, counts in listing.read_json(SOURCES_FILE).items():
        config = described[name]
        rows.append((name, config["source"], config["path"], counts["rows"], counts["usable"], counts["shards"]))
    columns = ["source", "kind", "path", "#rows", "#that can have an image", "#shards"]
    return {"title": "Sources", "columns": columns, "rows": rows}


def _count_records(counters: dict[str, int]) -> Iterator[tuple[str, int]]:
    yield "records read", counters.get("records", counters["rows"])
    yield "rows", counters["rows"]
    yield "rows that can have an image", counters.get("usable", counters["rows"])
    for name, count in counters.items():
        if name.startswith(PREFIX):
            yield f"rows with reason {name.removeprefix(PREFIX)}", count
    for name, text in (
        ("without_caption", "of the rows that can have an image, without a caption"),
        ("beyond_limit", "records above listing.limit, without a row"),
        ("forgotten", "rows forgotten on request"),
    ):
        if counters.get(name):
            yield text, counters[name]


def _name_rows(listing: Artifact, wanted: set[str]) -> list[tuple[str, str, str]]:
    """Returns the first rows of each reason; shards are read until there are enough."""
    left = Counter(dict.fromkeys(wanted, EXAMPLES))
    rows = []
    for path in listing.files():
        if not +left:
            break
        with storage.local_copy(path) as local, pq.ParquetFile(local) as file:
            names = [n for n in ("url", "caption", "reason", "error_message") if n in file.schema_arrow.names]
            shard = file.read(columns=names).to_pylist()
        for row in shard:
            if not row["url"] and row.get("reason") is None:  # forgotten
                continue
            reason = row.get("reason") or (WITHOUT_CAPTION if not row["caption"] else None)
            if reason is not None and left[reason] > 0:
                left[reason] -= 1
                rows.append((reason, row["url"], row.get("error_message") or ""))
    return sorted(rows, key=lambda item: item[0])


SECTION = ReportSection("Source", collect_source)
