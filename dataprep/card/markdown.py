"""The data card as Markdown, with the metadata block that Hugging Face's hub reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from dataprep.card.facts import list_most_frequent
from dataprep.card.hub_metadata import build_hub_metadata
from dataprep.io.markdown import format_table
from dataprep.io.wording import count_of


def render_card(
    facts: Mapping[str, Any], funnel: Sequence[Mapping[str, Any]], artifacts: Sequence[Mapping[str, Any]]
) -> str:
    """Renders the card as Markdown with the metadata block of Hugging Face's hub.

    Args:
        facts: result of `build_facts`.
        funnel: one dict per filter: filter, in, dropped, kept, reason.
        artifacts: one dict per stage: stage, fingerprint, files, bytes, sha256.
    """
    about, source = facts["about"], facts["source"]
    metadata = yaml.safe_dump(build_hub_metadata(facts), sort_keys=False, allow_unicode=True).strip()
    lines = ["---", metadata, "---", "", f"# Data card{': ' + about['title'] if about['title'] else ''}", ""]
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
        *_render_hosts(facts),
        *_render_section("Languages of the kept captions", list_most_frequent(facts["languages"]), "language", "rows"),
        *_render_section("Shorter side of the kept originals", facts["sides"].items(), "pixels", "rows"),
        *_render_section("Splits", facts["splits"].items(), "split", "rows"),
        *_render_artifacts(artifacts),
        *_render_removal(about["contact"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _render_section(title: str, rows: Iterable[Sequence[Any]], *heads: str) -> list[str]:
    return [f"## {title}", "", *_format_rows(list(rows), *heads)]


def _render_funnel(funnel: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [(step["filter"], step["reason"], step["in"], step["dropped"], step["kept"]) for step in funnel]
    return ["## Filters, in order", "", *_format_rows(rows, "filter", "drops rows with", "in", "dropped", "kept")]


def _render_licences(facts: Mapping[str, Any]) -> list[str]:
    if facts["licence_column"] is None:
        return ["## Licences", "", "The list has no licence column.", ""]
    title = f"Licences of the kept rows, from the list's column `{facts['licence_column']}`"
    return _render_section(title, list_most_frequent(facts["licences"]), "licence", "rows")


def _render_hosts(facts: Mapping[str, Any]) -> list[str]:
    if facts["source"]["source"] != "table":
        return []
    hosts = facts["hosts"]
    number = count_of(hosts["number"], "host")
    title = f"Hosts of the kept images: {number if hosts['exact'] else f'more than {number}'}"
    rows = list_most_frequent(hosts["most_images"])
    return _render_section(title, rows, "host", "rows")


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
