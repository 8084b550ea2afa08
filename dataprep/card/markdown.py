"""The data card as Markdown, with the metadata block that Hugging Face's hub reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from dataprep.card.facts import NOT_GIVEN, list_most_frequent, list_web_sources
from dataprep.card.hub_metadata import build_hub_metadata
from dataprep.io.markdown import format_table
from dataprep.io.scorer_heads import HEADS
from dataprep.io.wording import count_of

NOT_OF_ONE = ("name", "rows", "kept", "licences")  # of a source that is the only one: said elsewhere


def render_card(
    facts: Mapping[str, Any], funnel: Sequence[Mapping[str, Any]], artifacts: Sequence[Mapping[str, Any]]
) -> str:
    """Renders the card as Markdown with the metadata block of Hugging Face's hub.

    Args:
        facts: result of `build_facts`.
        funnel: one dict per filter: filter, in, dropped, kept, reason.
        artifacts: one dict per stage: stage, fingerprint, files, bytes, sha256.
    """
    about = facts["about"]
    metadata = yaml.safe_dump(build_hub_metadata(facts), sort_keys=False, allow_unicode=True).strip()
    lines = ["---", metadata, "---", "", f"# Data card{': ' + about['title'] if about['title'] else ''}", ""]
    lines += [about["notes"], ""] if about["notes"] else []
    lines += [
        f"{count_of(facts['kept'], 'image-caption pair')} kept of {count_of(facts['rows'], 'row')}.",
        "",
        *_render_sources(facts["sources"]),
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
        *_render_audit(facts["audit"]),
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
    heads = ("filter", "drops rows with", "in", "dropped", "kept")
    lines = ["## Filters, in order", "", *_format_rows(rows, *heads)]
    if steps := list_source_steps(funnel):
        lines += ["By source:", "", *_format_rows(steps, "filter", "source", *heads[1:])]
    return lines


def list_source_steps(funnel: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Returns filter, source, reason, rows in, dropped and kept of each filter and source; [] where there is one."""
    return [
        (step["filter"], source, found["reason"], found["in"], found["dropped"], found["kept"])
        for step in funnel
        for source, found in step.get("sources", {}).items()
    ]


def _render_sources(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    if len(sources) == 1:
        rows = [(key, value) for key, value in sources[0].items() if key not in NOT_OF_ONE]
        return _render_section("Source", rows, "key", "value")
    heads = ("name", "source", "path", "weight", "licence", "rows", "kept")
    table = [[source.get(head, "") for head in heads] for source in sources]
    note = "Weights are shares of the training samples; without any, rows count alike."
    return ["## Sources", "", note, "", *_format_rows(table, *heads)]


def _render_licences(facts: Mapping[str, Any]) -> list[str]:
    sources, column = facts["sources"], facts["licence_column"]
    if set(facts["licences"]) <= {NOT_GIVEN} and column is None:
        return ["## Licences", "", "The list has no licence column, and the source's `licence` is not set.", ""]
    origin = f"from the list's column `{column}`" if column else "as the config gives them"
    if len(sources) == 1:
        title = f"Licences of the kept rows, {origin}"
        return _render_section(title, list_most_frequent(facts["licences"]), "licence", "rows")
    rows = [(item["name"], *row) for item in sources for row in list_most_frequent(item["licences"])]
    return _render_section("Licences of the kept rows, by source", rows, "source", "licence", "rows")


def _render_hosts(facts: Mapping[str, Any]) -> list[str]:
    if not list_web_sources(facts):
        return []
    hosts = facts["hosts"]
    number = count_of(hosts["number"], "host")
    title = f"Hosts of the kept images: {number if hosts['exact'] else f'more than {number}'}"
    rows = list_most_frequent(hosts["most_images"])
    return _render_section(title, rows, "host", "rows")


def _render_audit(audit: Mapping[str, Any]) -> list[str]:
    """Renders who and where the captions speak of; "Audit" says what such counts cannot tell."""
    people = [
        (
            group,
            count,
            ", ".join(f"{item['word']} ({item['captions']}, {item['lift']:g}x)" for item in audit["beside"][group]),
        )
        for group, count in audit["people"].items()
    ]
    note = (
        "Captions of kept rows that name somebody of a group, by words (English, Chinese, French, German, Spanish), "
        "and the words that stand beside: captions with both, and how many times as often as anywhere. Captions that "
        "do not say who is in the image count for nobody."
    )
    lines = ["## Audit", "", note, "", *_format_rows(people, "people", "captions", "beside")]
    if audit["countries"]:
        lines += ["By the country code of the host (a host need not stand where its images are from):", ""]
        lines += _format_rows(list_most_frequent(audit["countries"]), "country code", "images")
    if audit["faces"]:
        lines += ["Faces that `annotate.faces` found; no detector finds all:", ""]
        lines += _format_rows(_add_shares(audit["faces"]), "faces", "images", "share")
    if audit["text"]:
        lines += ["Share of an image that text covers, as `annotate.text` found; it reads no words:", ""]
        lines += _format_rows(_add_shares(audit["text"]), "text", "images", "share")
    if audit["labels"]:
        lines += [
            "Labels by the run's CLIP (`score.labels`): of each question the label nearest to the image, also where "
            "none fits. A CLIP errs, and more so on what it has seen little of:",
            "",
        ]
    for question, counts in audit["labels"].items():
        lines += _format_rows(_add_shares(counts), question, "images", "share")
    for name, counts in audit["heads"].items():
        lines += [f"Head `{name}`: {HEADS[name].predicts}:", ""]
        lines += _format_rows(_add_shares(counts), name, "images", "share")
    return lines


def _add_shares(counts: Mapping[str, int]) -> list[tuple[str, int, str]]:
    whole = sum(counts.values())
    return [(name, count, f"{count / whole:.1%}" if whole else "") for name, count in counts.items()]


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
