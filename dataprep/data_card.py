"""The data card: what a dataset is made of, what was left out and why, and how to be removed from it.

`count_shard` adds up shard by shard, so memory does not grow with the rows; `build_facts` gives the counts as JSON and
`render_card` as Markdown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.data_card_config import CardConfig
from dataprep.io.failure_reasons import FORGOTTEN
from dataprep.io.markdown import format_table
from dataprep.io.wording import count_of

# Column names of licences in public lists, case-insensitive.
LICENCE_NAMES = ("license", "licence", "license_name", "license_url", "rights")
# Download reasons that are an opt-out of the owner.
OPT_OUTS = ("robots_txt", "robots_tag", "tdm")
SIDES = (64, 128, 256, 512, 1024, 2048)  # pixels: lower bounds of the classes of the shorter side
MOST = 12  # values of a column that are listed separately


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
    licence_column: str | None = None


def count_shard(download: str | Path, annotations: str | Path, selection: str | Path, counts: DataCounts) -> None:
    """Adds one shard, given as three row-aligned local Parquet files, to ``counts``."""
    names = pq.read_schema(download).names
    licence = next((name for name in names if name.lower() in LICENCE_NAMES), None)
    counts.licence_column = counts.licence_column or licence
    wanted = ["status", "reason", *([licence] if licence else [])]
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
    }


def _sort_by_count(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def render_card(
    facts: Mapping[str, Any], funnel: Sequence[Mapping[str, Any]], artifacts: Sequence[Mapping[str, Any]]
) -> str:
    """Renders the card as Markdown.

    Args:
        facts: result of `build_facts`.
        funnel: one dict per filter: filter, in, dropped, kept, reason.
        artifacts: one dict per stage: stage, fingerprint, files, bytes, sha256.
    """
    about, source = facts["about"], facts["source"]
    lines = [f"# Data card{': ' + about['title'] if about['title'] else ''}", ""]
    lines += [about["notes"], ""] if about["notes"] else []
    lines += [
        f"{count_of(facts['kept'], 'image-caption pair')} kept of {count_of(facts['rows'], 'row')}.",
        "",
        *_render_section("Source", source.items(), "key", "value"),
        *_render_section("Download", facts["statuses"].items(), "status", "rows"),
        *_render_section("Rows without an image, by reason", list_most_frequent(facts["reasons"]), "reason", "rows"),
        "## Opted out and forgotten",
        "",
        "Rows that were not fetched because their owner opted out: robots.txt, `X-Robots-Tag`, TDM reservation.",
        "",
        *_format_rows([*facts["opt_outs"].items(), ("forgotten on request", facts["forgotten"])], "opt-out", "rows"),
        *_render_funnel(funnel),
        *_render_licences(facts),
        *_render_section("Languages of the kept captions", list_most_frequent(facts["languages"]), "language", "rows"),
        *_render_section("Shorter side of the kept originals", facts["sides"].items(), "pixels", "rows"),
        *_render_section("Splits", facts["splits"].items(), "split", "rows"),
        *_render_artifacts(artifacts),
        *_render_removal(about["contact"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _render_section(title: str, rows: Iterable[Sequence[Any]], *heads: str) -> list[str]:
    return [f"## {title}", "", *_format_rows(list(rows), *heads)]


def list_most_frequent(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Returns the first `MOST` values with their counts, and the sum of the others."""
    rows = list(counts.items())
    rest = sum(count for _, count in rows[MOST:])
    return [*rows[:MOST], *([(f"{len(rows) - MOST} others", rest)] if rest else [])]


def _render_funnel(funnel: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [(step["filter"], step["reason"], step["in"], step["dropped"], step["kept"]) for step in funnel]
    return ["## Filters, in order", "", *_format_rows(rows, "filter", "drops rows with", "in", "dropped", "kept")]


def _render_licences(facts: Mapping[str, Any]) -> list[str]:
    if facts["licence_column"] is None:
        return ["## Licences", "", "The list has no licence column.", ""]
    title = f"Licences of the kept rows, from the list's column `{facts['licence_column']}`"
    return _render_section(title, list_most_frequent(facts["licences"]), "licence", "rows")


def _render_artifacts(artifacts: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [(item["stage"], item["fingerprint"], item["files"], item["bytes"], item["sha256"]) for item in artifacts]
    note = "sha256 of the artifact's lines `<sha256 of file>  <path>`, sorted by path, as `sha256sum` prints them."
    return ["## Artifacts", "", note, "", *_format_rows(rows, "stage", "fingerprint", "files", "bytes", "sha256")]


def _render_removal(contact: str | None) -> list[str]:
    who = f"Write to {contact} with" if contact else "Send the distributor of this dataset"
    return [
        "## How to be removed",
        "",
        f"{who} the URL of the image. `imagen-ray forget RUN URL` removes the image, its byte-identical copies, "
        "captions and embeddings from every file of the run; later runs skip them. To keep an image from being fetched "
        "at all, send it with `X-Robots-Tag: noai`, or disallow it in robots.txt.",
    ]


def _format_rows(rows: Sequence[Sequence[Any]], *heads: str) -> list[str]:
    return [*format_table(heads, rows), ""] if rows else ["None.", ""]
