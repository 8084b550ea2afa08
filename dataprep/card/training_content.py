"""The public summary of training content that the EU AI Act asks of providers of general-purpose models.

Follows the sections of the European Commission's template (C(2025) 8311; Article 53(1)(d) of the AI Act).
What the run cannot know is marked as open, for the provider to fill in; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataprep.card.facts import is_synthetic, list_web_sources
from dataprep.card.hub_metadata import list_main_languages
from dataprep.io.markdown import escape_cell, format_table
from dataprep.io.wording import count_of

OPEN = "**To be filled in by the provider.**"
NONE = "None."
TEXT_SIZES = ((10**9, "less than 1 billion tokens"), (10**13, "1 billion to 10 trillion tokens"))
IMAGE_SIZES = ((10**6, "less than 1 million images"), (10**9, "1 million to 1 billion images"))
UNSAFE_FILTERS = ("nsfw_label", "unsafe")  # filters that are about illegal or unsafe content


def render_training_content(
    facts: Mapping[str, Any], funnel: Sequence[Mapping[str, Any]], fetch: Mapping[str, Any], tokens: int
) -> str:
    """Renders the summary as Markdown.

    Args:
        facts: result of `build_facts`.
        funnel: one dict per filter: filter, reason, dropped.
        fetch: the dumped config of how URLs are fetched.
        tokens: tokens of the kept captions.
    """
    lines = [
        "# Public summary of training content",
        "",
        "Sections as in the European Commission's template (Regulation (EU) 2024/1689, Article 53(1)(d)). Counts are "
        "those of this run; lines in bold are open. It covers the image-caption pairs alone: text encoders and weights "
        "that training started from have summaries of their own.",
        "",
        *_render_general(facts, tokens),
        *_render_sources(facts, fetch),
        *_render_processing(facts, funnel, fetch),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _render_general(facts: Mapping[str, Any], tokens: int) -> list[str]:
    about = facts["about"]
    who = [item for item in (about["creator"], about["contact"]) if item]
    languages = ", ".join(list_main_languages(facts))
    table = [
        ("Text", _classify(tokens, TEXT_SIZES, "more than 10 trillion tokens"), f"{tokens:,} tokens of captions"),
        (
            "Image",
            _classify(facts["kept"], IMAGE_SIZES, "more than 1 billion images"),
            count_of(facts["kept"], "image"),
        ),
    ]
    return [
        "## 1. General information",
        "",
        "### 1.1 Provider identification",
        "",
        f"Provider name and contact: {escape_cell(', '.join(who)) if who else OPEN}",
        "",
        "### 1.2 Model identification",
        "",
        f"Versioned model names, dependencies, date of placement on the market: {OPEN}",
        "",
        "### 1.3 Modalities, overall training data size and other characteristics",
        "",
        *format_table(("modality", "size class", "in this run"), table),
        "",
        f"Latest date of collection: {OPEN}",
        "",
        f"Languages of the captions (at least 1% each): {languages or 'not determined'}.",
        "",
    ]


def _classify(number: int, bounds: Sequence[tuple[int, str]], beyond: str) -> str:
    return next((name for bound, name in bounds if number < bound), beyond)


def _render_sources(facts: Mapping[str, Any], fetch: Mapping[str, Any]) -> list[str]:
    lists, synthetic = list_web_sources(facts), is_synthetic(facts)
    own = [source for source in facts["sources"] if source not in lists and not synthetic]
    public = [f"The list of URLs `{_name_path(source)}`. Its name, publisher and licence: {OPEN}" for source in lists]
    public += [f"Whether {_name_path(source)} is publicly available: {OPEN}" for source in own]
    texts = {
        "2.1 Publicly available datasets": "\n\n".join(public) or NONE,
        "2.2 Private non-publicly available datasets obtained from third parties": OPEN if own else NONE,
        "2.4 User data": OPEN if own else NONE,
        "2.5 Synthetic data": "All images and captions are rendered by a program, by no other model."
        if synthetic
        else f"Images or captions made by other models: {OPEN}",
        "2.6 Other sources of data": OPEN if own else NONE,
    }
    crawled = _render_crawl(facts, fetch) if lists else [NONE, ""]
    lines = ["## 2. List of data sources", ""]
    for title, text in texts.items():
        if title.startswith("2.4"):
            lines += ["### 2.3 Data crawled and scraped from online sources", "", *crawled]
        lines += [f"### {title}", "", text, ""]
    return lines


def _name_path(source: Mapping[str, Any]) -> str:
    path = escape_cell(source.get("path"))
    return f"{path} (licence: {escape_cell(source['licence'])})" if "licence" in source else path


def _render_crawl(facts: Mapping[str, Any], fetch: Mapping[str, Any]) -> list[str]:
    hosts = facts["hosts"]
    top = list(hosts["most_images"].items())[: max(1, -(-hosts["number"] // 10))]
    number = f"{'' if hosts['exact'] else 'more than '}{hosts['number']:,}"
    return [
        f"Crawler: `{escape_cell(fetch['user_agent'])}`; fetches the images of the list, follows no links.",
        "",
        f"Period of collection: {OPEN}",
        "",
        f"Hosts of the kept images: {number}. Those with the most images, up to a tenth of all hosts and to 1,000:",
        "",
        *format_table(("host", "#images"), top),
        "",
    ]


def _render_processing(
    facts: Mapping[str, Any], funnel: Sequence[Mapping[str, Any]], fetch: Mapping[str, Any]
) -> list[str]:
    measures = {
        "robots.txt": fetch["obey_robots_txt"],
        f"X-Robots-Tag ({', '.join(fetch['disallowed_directives'])})": fetch["obey_robots_tag"],
        "TDM reservation protocol": fetch["obey_tdm"],
    }
    rights = [(name, "respected" if kept else "not respected") for name, kept in measures.items()]
    unsafe = [(step["filter"], step["reason"], step["dropped"]) for step in funnel if step["filter"] in UNSAFE_FILTERS]
    all_filters = [(step["filter"], step["reason"], step["dropped"]) for step in funnel]
    heads = ("filter", "drops rows with", "#dropped")
    web = list_web_sources(facts)
    return [
        "## 3. Data processing aspects",
        "",
        "### 3.1 Respect of reservation of rights from the text and data mining exception",
        "",
        *(format_table(("means", "in this run"), rights) if web else ["Nothing was fetched from the web."]),
        "",
        f"Rows left out since their owner opted out: {sum(facts['opt_outs'].values()):,}; removed on request: "
        f"{facts['forgotten']:,}.",
        "",
        "### 3.2 Removal of illegal content",
        "",
        *(format_table(heads, unsafe) if unsafe else [f"No filter of this run is about it. {OPEN}"]),
        "",
        "### 3.3 Other information",
        "",
        "All filters, in order:",
        "",
        *(format_table(heads, all_filters) if all_filters else [NONE]),
        "",
    ]
