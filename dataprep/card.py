"""The data card: what a data set is made of, what was left out and why, and how somebody is taken out of it.

Counts are gathered shard by shard (`count_shard`), so that memory does not grow with the rows; `card_text` writes the
facts as Markdown. The same facts are kept as JSON beside it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from dataprep.redact import FORGOTTEN
from dataprep.schema import Config

# Names under which public lists give a picture's licence, in any case.
LICENCE_NAMES = ("license", "licence", "license_name", "license_url", "rights")
# Reasons of the download that are somebody's wish not to be used.
OPT_OUTS = ("robots_txt", "robots_tag", "tdm")
SIDES = (64, 128, 256, 512, 1024, 2048)  # pixels: where the classes of the shorter side begin
MOST = 12  # values of a column that are listed one by one


class CardConfig(Config):
    """What the data card says beyond what is counted."""

    title: str | None = Field(default=None, description="name of the data set; null: the run folder's name is not told")
    contact: str | None = Field(default=None, description="whom to write to for removal: an address or a URL")
    notes: str | None = Field(default=None, description="a paragraph of your own: purpose, consent, known limits")


@dataclass
class Counts:
    """What is counted over all shards."""

    rows: int = 0
    kept: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)  # of rows without an image
    licences: Counter[str] = field(default_factory=Counter)  # of kept rows
    languages: Counter[str] = field(default_factory=Counter)  # of kept rows
    sides: Counter[str] = field(default_factory=Counter)  # of kept rows
    splits: Counter[str] = field(default_factory=Counter)
    licence_column: str | None = None


def count_shard(download: str | Path, annotations: str | Path, selection: str | Path, counts: Counts) -> None:
    """Adds one shard, given by its three row-aligned local Parquet files, to ``counts``."""
    names = pq.read_schema(download).names
    licence = next((name for name in names if name.lower() in LICENCE_NAMES), None)
    counts.licence_column = counts.licence_column or licence
    wanted = ["status", "reason" if "reason" in names else "error_message", *([licence] if licence else [])]
    fetched = pq.read_table(download, columns=wanted)
    measured = pq.read_table(annotations, columns=["language", "width", "height"])
    verdicts = pq.read_table(selection, columns=["keep", "split"])
    keep = verdicts["keep"].combine_chunks()
    counts.rows += fetched.num_rows
    counts.kept += pa.compute.sum(keep).as_py() or 0
    counts.statuses += _count(fetched["status"])
    counts.reasons += _count(fetched[wanted[1]])
    if licence:
        counts.licences += _count(fetched[licence].cast(pa.string()).fill_null("not given").filter(keep))
    counts.languages += _count(measured["language"].filter(keep))
    sides = pa.compute.min_element_wise(measured["width"], measured["height"]).filter(keep).to_pylist()
    counts.sides += Counter(_class(side) for side in sides if side is not None)
    counts.splits += _count(verdicts["split"])


def _count(column: Any) -> Counter[str]:
    """How often each value that is not null stands in a column."""
    found = pa.compute.value_counts(column.drop_null()).to_pylist()
    return Counter({str(item["values"]): item["counts"] for item in found})


def _class(side: int) -> str:
    below = [bound for bound in SIDES if side >= bound]
    return f"from {below[-1]}" if below else f"below {SIDES[0]}"


def facts(counts: Counts, listing: Mapping[str, Any], config: CardConfig) -> dict[str, Any]:
    """The counts as JSON-able data in a fixed order; ``listing`` is the listing's config as plain data."""
    source = {name: listing[name] for name in ("source", "path", "limit") if listing.get(name) is not None}
    if listing["source"] == "scenes":
        source["note"] = "drawn by this program: nothing in it is from a third party"
    order = [f"below {SIDES[0]}", *(f"from {side}" for side in SIDES)]
    return {
        "about": config.model_dump(),
        "source": source,
        "rows": counts.rows,
        "kept": counts.kept,
        "statuses": _sorted(counts.statuses),
        "reasons": _sorted(counts.reasons),
        "opt_outs": {reason: counts.reasons[reason] for reason in OPT_OUTS},
        "forgotten": counts.reasons[FORGOTTEN],
        "licence_column": counts.licence_column,
        "licences": _sorted(counts.licences),
        "languages": _sorted(counts.languages),
        "sides": {name: counts.sides[name] for name in order if counts.sides[name]},
        "splits": _sorted(counts.splits),
    }


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def card_text(
    told: Mapping[str, Any], funnel: Sequence[Mapping[str, Any]], artifacts: Sequence[Mapping[str, Any]]
) -> str:
    """The card as Markdown.

    Args:
        told: what `facts` gives.
        funnel: the selection's funnel, a dict a filter: filter, in, dropped, kept, reason.
        artifacts: a dict a stage: stage, fingerprint, files, bytes, sha256.
    """
    about, source = told["about"], told["source"]
    lines = [f"# Data card{': ' + about['title'] if about['title'] else ''}", ""]
    lines += [about["notes"], ""] if about["notes"] else []
    lines += [
        f"{told['kept']:,} pairs of image and caption, kept of {told['rows']:,} rows.",
        "",
        *_section("Source", source.items(), "what", "which"),
        *_section("Download", told["statuses"].items(), "status", "rows"),
        *_section("Rows without an image, by reason", most(told["reasons"]), "reason", "rows"),
        "## Opted out and forgotten",
        "",
        "Rows whose owners' wish was read and obeyed: robots.txt, `X-Robots-Tag`, and a TDM reservation.",
        "",
        *_table([*told["opt_outs"].items(), ("forgotten on request", told["forgotten"])], "wish", "rows"),
        *_funnel(funnel),
        *_licences(told),
        *_section("Languages of the kept captions", most(told["languages"]), "language", "rows"),
        *_section("Shorter side of the kept originals", told["sides"].items(), "pixels", "rows"),
        *_section("Splits", told["splits"].items(), "split", "rows"),
        *_artifacts(artifacts),
        *_removal(about["contact"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _section(title: str, rows: Iterable[Sequence[Any]], *heads: str) -> list[str]:
    return [f"## {title}", "", *_table(list(rows), *heads)]


def _table(rows: Sequence[Sequence[Any]], *heads: str) -> list[str]:
    if not rows:
        return ["None.", ""]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return [*lines, *("| " + " | ".join(_cell(value) for value in row) + " |" for row in rows), ""]


def _cell(value: Any) -> str:
    """One cell: a number with separators; text that cannot end the cell, start a tag or a link."""
    if isinstance(value, int):
        return f"{value:,}"
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|\[\]*_`])", r"\\\1", text)


def most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The first `MOST` values with their counts, and the sum of the others."""
    rows = list(counts.items())
    rest = sum(count for _, count in rows[MOST:])
    return [*rows[:MOST], *([(f"{len(rows) - MOST} others", rest)] if rest else [])]


def _funnel(funnel: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [(step["filter"], step["reason"], step["in"], step["dropped"], step["kept"]) for step in funnel]
    return ["## Filters, in their order", "", *_table(rows, "filter", "drops what is", "in", "dropped", "kept")]


def _licences(told: Mapping[str, Any]) -> list[str]:
    if told["licence_column"] is None:
        return ["## Licences", "", "The list has no column that says a picture's licence.", ""]
    title = f"Licences of the kept rows, from the list's column `{told['licence_column']}`"
    return _section(title, most(told["licences"]), "licence", "rows")


def _artifacts(artifacts: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [(item["stage"], item["fingerprint"], item["files"], item["bytes"], item["sha256"]) for item in artifacts]
    note = (
        "sha256 of the lines `<sha256 of a file>  <its path>` of an artifact, sorted by path, as `sha256sum` has them."
    )
    return ["## Artifacts", "", note, "", *_table(rows, "stage", "fingerprint", "files", "bytes", "sha256")]


def _removal(contact: str | None) -> list[str]:
    who = f"Write to {contact} with" if contact else "Send whoever gave you this data set"
    return [
        "## How to be removed",
        "",
        f"{who} the URL of the image. `imagen-ray forget RUN URL` takes the picture, its copies with the same bytes, "
        "captions and embeddings out of every file of the run, and no later run takes them up again. To keep an image "
        "from being fetched at all, send `X-Robots-Tag: noai` with it, or name it in robots.txt.",
    ]
