"""The worker of stage `score`, on a download shard, with a CLIP whose features are the pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dataprep.io.parquet import read_table
from eval.clip.config import HeadConfig, ScoreConfig
from eval.clip.scorer import ClipScorer
from pipeline.runtime import device
from pipeline.runtime.shard_worker import ShardTask
from pipeline.stages.score import ScoreWorker, locate_heads
from tests.helpers.judged import fake_clip
from tests.helpers.runs import Made


def test_heads_labels_and_features_are_columns(
    finished_run: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipScorer, "load", fake_clip)
    monkeypatch.setattr(device, "count_decode_threads", lambda: 1)  # asks Ray, of which this process is no worker
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.ones(1, 48)}, "head.pt")
    heads = locate_heads({"aesthetic": HeadConfig(path="head.pt")})
    assert heads["aesthetic"].path == str(tmp_path / "head.pt")
    labels: dict[str, tuple[str, ...]] = {"what": ("a red circle", "a blue square")}
    config = ScoreConfig(heads=heads, labels=labels, embeddings=True)
    download = finished_run.run.artifacts()["download"].shards[0]
    files = {f"download.{name}": path for name, path in download.files.items()}
    clip: dict[str, str | None] = {"model": "x", "pretrained": None}
    counters = ScoreWorker(clip, 1 << 24, config)(ShardTask(0, files, tmp_path))
    table = read_table(tmp_path / "00000.parquet", "scores")
    assert table.column_names == ["key", "clip_similarity", "aesthetic", "label_what", "clip_embedding"]
    assert counters["scored"] == table.num_rows - table["label_what"].null_count > 0
    assert set(table["label_what"].drop_null().to_pylist()) <= set(labels["what"])
