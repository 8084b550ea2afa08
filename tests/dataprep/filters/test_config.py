"""The config of the selection, and the filters that it makes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dataprep.filters.config import SelectConfig, make_filters, make_set_filters
from dataprep.filters.registry import FILTERS
from dataprep.io.errors import UserError
from dataprep.io.schemas import ANNOTATIONS, FACES, TEXT
from tests.helpers.selection import LISTED, OFF, reasons, row


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"drop_nsfw_labels": ("NSFW",)}, ["select.drop_nsfw_labels", "listing.layout"]),
        ({"unsafe_below": 0.5}, ["select.unsafe_below", "score.heads.nsfw"]),
        ({"aesthetic_above": 0.5}, ["listed_aesthetic", "score.heads.aesthetic"]),
        ({"min_similarity": 0.3, "similarity": "listed_similarity_l14"}, ["set select.similarity=score"]),
        ({"top_similarity": 0.3}, ["clip_similarity", "score stage"]),
        ({"languages": ("en",), "language_from": "listed"}, ["set select.language_from=caption"]),
        ({"near_duplicate_cosine": 0.9}, ["set score.embeddings=true"]),
        ({"duplicate_pairs": True}, ["select (duplicate_pair)", "url"]),
    ],
)
def test_a_missing_column_is_named_with_its_remedy(config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        reasons([row(0)], OFF.model_copy(update=config))
    assert all(word in str(caught.value) for word in words), caught.value


def test_all_filters_on_are_all_filters_in_order() -> None:
    everything = SelectConfig(
        min_area=1,
        min_bytes=1,
        languages=("en",),
        max_faces=2,
        max_face=0.5,
        max_text_area=0.5,
        drop_nsfw_labels=("NSFW",),
        unsafe_below=0.5,
        watermark_below=0.5,
        min_aesthetic=1.0,
        top_similarity=0.5,
        duplicate_pairs=True,
        max_caption_repeats=3,
        near_duplicate_cosine=0.9,
    )
    available = {*ANNOTATIONS.names, *FACES.names, *TEXT.names, *LISTED, "url", "clip_similarity", "clip_embedding"}
    rules = [*make_filters(everything, available, 0.1), *make_set_filters(everything, available)]
    assert rules == list(FILTERS)


def test_config_errors() -> None:
    with pytest.raises(ValidationError, match="min_caption_chars 50 is above max_caption_chars 20"):
        SelectConfig(min_caption_chars=50, max_caption_chars=20)
    with pytest.raises(ValidationError, match="min_area 50 is above max_area 20"):
        SelectConfig(min_area=50, max_area=20)
    with pytest.raises(ValidationError, match="not a regular expression"):
        SelectConfig(boilerplate_patterns=("(",))
    with pytest.raises(ValidationError, match="set one of them to null"):
        SelectConfig(min_aesthetic=5.0, aesthetic_above=7.0)
