"""The metadata block of the data card, as Hugging Face's own library reads it."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import DatasetCard

from dataprep.card.config import CardConfig
from dataprep.card.facts import DataCounts, build_facts
from dataprep.card.hub_metadata import build_hub_metadata
from dataprep.card.markdown import render_card


def count(kept: int = 3, source: str = "table", **config: Any) -> dict[str, Any]:
    counts = DataCounts(rows=kept, kept=kept)
    counts.languages.update({"en": 990, "zh": 10, "fr": 9, "unknown": 500})
    return build_facts(counts, {"": {"source": source, "path": "list.csv"}}, CardConfig(**config))


def test_the_hub_reads_the_card() -> None:
    card = DatasetCard(render_card(count(title="Zebras: a set", licence="cc-by-4.0"), [], []))
    data = card.data.to_dict()
    assert data["pretty_name"] == "Zebras: a set"
    assert data["license"] == "cc-by-4.0"
    assert data["language"] == ["en"]  # zh has less than 1% of all captions, unknown is no code
    assert data["task_categories"] == ["text-to-image"]
    assert data["size_categories"] == ["n<1K"]
    assert card.text.lstrip().startswith("# Data card: Zebras: a set")


def test_nothing_is_said_that_is_not_known() -> None:
    assert set(build_hub_metadata(count())) == {"language", "task_categories", "size_categories", "tags"}


def test_rendered_images_are_called_synthetic() -> None:
    found = build_hub_metadata(count(source="scenes"))
    assert "synthetic" in found["tags"] and found["source_datasets"] == ["original"]


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (500_000, "100K<n<1M"),
        (10**6, "1M<n<10M"),
        (999_999_999, "100M<n<1B"),
        (2 * 10**11, "100B<n<1T"),
        (10**12, "n>1T"),
    ],
)
def test_sizes_are_the_hubs_classes(rows: int, name: str) -> None:
    assert build_hub_metadata(count(rows))["size_categories"] == [name]


@pytest.mark.parametrize("date", ["2026-13-01", "31.1.2026", "2026-1-1"])
def test_a_date_of_another_form_is_refused(date: str) -> None:
    with pytest.raises(ValueError, match="give it as 2026-01-31"):
        CardConfig(published=date)
