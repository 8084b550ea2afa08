"""Metadata of a dataset for Hugging Face's hub: the YAML block at the head of its card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dataprep.card.facts import is_synthetic

ISO_639_1 = re.compile(r"[a-z]{2}")
SIZE_LETTERS = ("", "K", "M", "B", "T")


def build_hub_metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of the hub's dataset card that are known; ``facts`` is the result of `build_facts`.

    Languages are those of at least one kept caption in a hundred. A licence is given only if the config names one: the
    licences of single images are in the card's text.
    """
    about = facts["about"]
    synthetic = is_synthetic(facts)
    known = {
        "pretty_name": about["title"],
        "license": about["licence"],
        "language": list_main_languages(facts),
        "task_categories": ["text-to-image"],
        "size_categories": [_classify_size(facts["kept"])],
        "source_datasets": ["original"] if synthetic else None,
        "tags": ["image-caption pairs", "imagen-ray", *(["synthetic"] if synthetic else [])],
    }
    return {name: value for name, value in known.items() if value}


def list_main_languages(facts: Mapping[str, Any]) -> list[str]:
    """Returns the ISO 639-1 codes of the languages of at least 1% of the kept captions, most frequent first."""
    counts: Mapping[str, int] = facts["languages"]
    least = sum(counts.values()) / 100
    return [code for code, count in counts.items() if ISO_639_1.fullmatch(code) and count >= least]


def _classify_size(rows: int) -> str:
    """Returns the hub's class of a number of rows, such as ``1K<n<10K``."""
    if rows < 1000:
        return "n<1K"
    if rows >= 10**12:
        return "n>1T"
    bounds = []
    digits = len(str(rows)) - 1
    for power in (digits, digits + 1):
        bounds.append(f"{10 ** (power % 3)}{SIZE_LETTERS[power // 3]}")
    return f"{bounds[0]}<n<{bounds[1]}"
