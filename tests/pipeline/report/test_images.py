"""Images as data URLs, and examples of dropped and kept rows."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dataprep.io import storage
from pipeline.report.images import (
    collect_dropped_examples,
    collect_kept_examples,
    encode_lossless_url,
    encode_png_url,
    encode_thumbnail_url,
)
from pipeline.store.run import Run
from tests.helpers.data_urls import decode_data_url
from tests.helpers.runs import DEAD, caption, url


@pytest.mark.parametrize("size", [(400, 100), (30, 60)])
def test_thumbnails_are_small_and_keep_their_shape(size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "JPEG")
    source = encode_thumbnail_url(buffer.getvalue())
    assert source.startswith("data:image/webp;base64,")
    assert len(source) < 1000
    assert encode_png_url(b"x").startswith("data:image/png;base64,")
    assert np.asarray(decode_data_url(encode_lossless_url(buffer.getvalue()))).shape == (*size[::-1], 3)


def test_dropped_examples_of_every_filter(run: Run) -> None:
    artifacts = run.artifacts()
    groups = collect_dropped_examples(artifacts["download"], artifacts["select"], count=3)
    assert [(group["reason"], group["count"]) for group in groups] == [
        ("downloaded: no image", 1),
        ("caption_words: too few", 1),
    ]
    failed, short = (group["items"][0] for group in groups)
    assert (failed["caption"], failed["src"]) == (caption(DEAD), None)
    assert "404" in failed["note"]
    assert (short["caption"], short["note"]) == ("short", url(5))
    assert short["src"].startswith("data:image/webp;base64,")


def test_dropped_examples_are_those_of_the_selection(run: Run) -> None:
    artifacts = run.artifacts()
    select = artifacts["select"]
    noted = {"caption_words": [{"shard": 1, "key": "000010001"}, {"shard": 0, "key": "000000002"}]}
    storage.write_json(select.path("examples.json"), noted)
    failed, short = collect_dropped_examples(artifacts["download"], select, count=3)
    assert failed["items"] == []
    assert [item["caption"] for item in short["items"]] == [caption(6), caption(2)]


def test_kept_examples_are_spread_over_the_list(run: Run) -> None:
    artifacts = run.artifacts()
    captions = [caption(row) for row in range(13) if row not in (DEAD, 5)]
    for count in (1, 3, 5, 11, 40):
        shown = [item["caption"] for item in collect_kept_examples(artifacts["download"], artifacts["select"], count)]
        step = max(1, len(captions) // count)
        assert shown == captions[::step][:count]
    assert collect_kept_examples(artifacts["download"], artifacts["select"], 0) == []
