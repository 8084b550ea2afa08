"""What training is given where some shards hold nothing, or were never made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from dataprep.embed import SCHEMA
from dataprep.schema import UserError, write_table
from pipeline.config import STORED_PIXELS
from pipeline.steps import models
from pipeline.steps.learn import text_width
from pipeline.store import Marker


def embeddings(path: Path, rows: int) -> str:
    one = {"key": "000000000", "caption": "a", "length": 1, "dim": 8, "codec": "float16", "embedding": bytes(16)}
    write_table(pa.Table.from_pylist([one] * rows, schema=SCHEMA), path, "embeddings")
    return str(path)


def test_the_text_width_is_that_of_the_first_shard_with_a_caption(tmp_path: Path) -> None:
    empty, full = embeddings(tmp_path / "0.parquet", 0), embeddings(tmp_path / "1.parquet", 2)
    assert text_width([empty, full]) == 8
    with pytest.raises(UserError, match="nothing was kept to train on"):
        text_width([empty])


def test_clip_learns_from_the_shards_that_were_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shard 1 was given up on (cluster.max_quarantined); shard 12 ended before shard 2."""
    given: dict[str, Any] = {}
    config = {"clip.train": SimpleNamespace(image_size=32), "clip.model": None, "clip.pretrained": None}
    context = SimpleNamespace(
        config=config | {STORED_PIXELS: 100},
        inputs={"encoder": None},
        finished=[Marker(number, "w", {}, [], {}) for number in (12, 0, 2)],
        map_shards=lambda worker, arguments, shards, subfolder: given.update(arguments),
        shards=lambda stage: [],
        path=lambda *parts: "/".join(parts),
    )
    monkeypatch.setattr(models, "fit", lambda ctx, function, arguments, config: given.update(arguments))
    monkeypatch.setattr(models, "encoder_spec", lambda artifact: "t5")
    monkeypatch.setattr(models.storage, "remove", lambda path: None)
    monkeypatch.setattr(models.storage, "write_json", lambda path, value: None)
    models.clip(context)
    assert given["pairs"] == ["pairs/00000.parquet", "pairs/00002.parquet", "pairs/00012.parquet"]
    assert given["max_pixels"] == 100
