"""Captions of a shard: aligned with its rows, for the kept images alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dataprep.io.parquet import read_table, write_table
from eval.captioning.answers import Answer
from eval.captioning.caption_shard import caption_shard
from eval.captioning.config import CaptionConfig
from eval.captioning.vision_language_model import VisionLanguageModel
from tests.helpers.images import picture

CONFIG = CaptionConfig.model_validate(
    {"prompts": {name: {"prompt": name, "max_tokens": 5} for name in ("long", "short", "tags")}} | {"batch_size": 3}
)


class ToldModel:
    """Answers with the prompt and the size of the image; nothing of an image that is 30 pixels wide."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def prepare(self, images: list[Image.Image], prompt: Any) -> list[Any]:
        self.batches.append(len(images))
        return [(prompt.prompt, image.size) for image in images]

    def answer(self, prepared: list[Any], max_tokens: int) -> list[Answer]:
        assert max_tokens == 5
        texts = ["" if size[0] == 30 else f"{prompt} {size[0]}x{size[1]}" for prompt, size in prepared]
        return [Answer(text, text.startswith("long")) for text in texts]


def run(folder: Path, keep: list[bool], images: dict[str, np.ndarray], names: tuple[str, ...]) -> tuple[Any, Any, Any]:
    keys = [f"0000{row}" for row in range(len(keep))]
    columns = {"key": keys, "keep": keep, "reason": [None] * len(keep), "split": ["train"] * len(keep)}
    write_table(pa.table(columns), folder / "s.parquet", "selection")
    model = ToldModel()
    known = cast(VisionLanguageModel, model)
    counters = caption_shard(images.items(), folder / "s.parquet", folder / "o.parquet", known, CONFIG, names)
    return read_table(folder / "o.parquet", "columns"), counters, model


def test_kept_images_are_described_in_batches(tmp_path: Path) -> None:
    keep = [True, False, True, True, True, True]
    pictures = {f"0000{row}": picture(row, 20 + 5 * row, 40) for row in (5, 3, 0, 1, 2, 4)}  # in any order
    table, counters, model = run(tmp_path, keep, pictures, ("long", "short"))
    assert table["key"].to_pylist() == [f"0000{row}" for row in range(6)]
    assert table["long"].to_pylist() == ["long 20x40", None, None, "long 35x40", "long 40x40", "long 45x40"]
    assert table["short"].to_pylist()[5] == "short 45x40" and table["tags"].null_count == 6
    assert counters == {"rows": 6, "captioned": 5, "left_out": 1, "captions": 8, "empty": 2, "cut": 4}
    assert model.batches == [3, 3, 2, 2]


def test_images_are_made_smaller_never_larger(tmp_path: Path) -> None:
    table, _, _ = run(tmp_path, [True, True], {"00000": picture(0, 1024, 300), "00001": picture(1, 80, 64)}, ("short",))
    assert table["short"].to_pylist() == ["short 512x150", "short 80x64"]


def test_a_source_without_written_captions_needs_no_image(tmp_path: Path) -> None:
    table, counters, model = run(tmp_path, [True, True], {}, ())
    assert counters["captioned"] == 0 and counters["left_out"] == 2 and model.batches == []
    assert table.column_names == ["key", "long", "short", "tags"] and table["long"].null_count == 2


def test_an_image_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"s.parquet: 1 of 2 kept images; download the shard again"):
        run(tmp_path, [True, True], {"00000": picture()}, ("short",))
