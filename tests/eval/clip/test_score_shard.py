"""The table of scores of a shard."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import create_model
from torch import nn

from dataprep.filters.config import SelectConfig
from dataprep.filters.predictions import limit_head
from dataprep.filters.registry import FILTERS
from dataprep.io.pack_format import FEATURES
from dataprep.io.parquet import read_table, write_table
from dataprep.io.scorer_heads import HEADS, ScorerHead
from eval.clip.config import HeadConfig, ScoreConfig
from eval.clip.heads import Head
from eval.clip.score_shard import load_heads, score_shard
from eval.clip.scorer import ClipScorer
from tests.helpers.scoring import flat, make_scorer
from tests.helpers.selection import reasons, row


@pytest.fixture
def scorer() -> ClipScorer:
    return make_scorer()


def test_scores_are_aligned_with_the_shard(scorer: ClipScorer, tmp_path: Path) -> None:
    table = pa.table({"key": ["a", "b", "c", "d"], "caption": ["100", "010", "001", "100"]})
    write_table(table, tmp_path / "d.parquet", "download")
    images = [("d", flat(0, 9, 0)), ("a", flat(9, 0, 0)), ("c", flat(0, 0, 9))]
    counters = score_shard(iter(images), tmp_path / "d.parquet", tmp_path / "s.parquet", scorer)
    assert counters == {"rows": 4, "scored": 3, "without_image": 1}
    scores = read_table(tmp_path / "s.parquet", "scores")
    assert scores["key"].to_pylist() == ["a", "b", "c", "d"]
    assert scores["clip_similarity"].to_pylist() == pytest.approx([1.0, None, 1.0, 0.0])
    with pytest.raises(ValueError, match="no row for image x"):
        score_shard([("x", flat(1, 1, 1))], tmp_path / "d.parquet", tmp_path / "s.parquet", scorer)


def test_features_and_heads_are_kept_beside_the_similarity(scorer: ClipScorer, tmp_path: Path) -> None:
    table = pa.table({"key": ["a", "b", "c"], "caption": ["100", "010", "001"]})
    write_table(table, tmp_path / "d.parquet", "download")
    red = nn.Linear(3, 1, bias=False)
    red.weight.data = torch.tensor([[5.0, 0.0, 0.0]])
    heads = [Head(nn.Sequential(red), "aesthetic", 3)]
    images = [("a", flat(9, 0, 0)), ("c", flat(0, 3, 4))]
    score_shard(iter(images), tmp_path / "d.parquet", tmp_path / "s.parquet", scorer, heads, [*FEATURES])
    scores = read_table(tmp_path / "s.parquet", "scores")
    assert scores.schema.field("aesthetic").type == pa.float32()
    assert scores["aesthetic"].to_pylist() == pytest.approx([5.0, None, 0.0])
    assert scores.schema.field("clip_embedding").type == pa.binary(6)
    features = [value and np.frombuffer(value, "<f2") for value in scores["clip_embedding"].to_pylist()]
    assert features[1] is None
    np.testing.assert_allclose(features[2], [0, 0.6, 0.8], atol=1e-3)
    texts = [value and np.frombuffer(value, "<f2") for value in scores["clip_text_embedding"].to_pylist()]
    assert texts[1] is None  # without an image its caption is not encoded
    np.testing.assert_allclose(texts[2], [0, 0, 1], atol=1e-3)
    score_shard(iter([]), tmp_path / "d.parquet", tmp_path / "none.parquet", scorer, heads, [*FEATURES])
    empty = read_table(tmp_path / "none.parquet", "scores")
    assert empty.schema == scores.schema and empty["aesthetic"].null_count == 3


def test_each_image_gets_the_nearest_label_of_a_question(scorer: ClipScorer, tmp_path: Path) -> None:
    table = pa.table({"key": ["a", "b", "c"], "caption": ["100", "010", "001"]})
    write_table(table, tmp_path / "d.parquet", "download")
    config = ScoreConfig(labels={"colour": ("100", "010", "001"), "warmth": ("110", "001")})
    images = [("c", flat(0, 1, 9)), ("a", flat(9, 2, 0))]
    score_shard(images, tmp_path / "d.parquet", tmp_path / "s.parquet", scorer, load_heads(config, scorer))
    scores = read_table(tmp_path / "s.parquet", "scores")
    assert scores["label_colour"].to_pylist() == ["100", None, "001"]
    assert scores["label_warmth"].to_pylist() == ["110", None, "001"]
    assert scores.schema.field("label_colour").type == pa.string()


def test_a_new_head_is_scored_and_filtered_by(
    scorer: ClipScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlaid = limit_head("overlaid", "text", "keep below this probability of overlaid text")
    monkeypatch.setitem(HEADS, "text", ScorerHead("probability of overlaid text"))
    monkeypatch.setitem(FILTERS, "overlaid", overlaid)
    torch.save({"weight": torch.tensor([[4.0, -4.0, 0.0]])}, tmp_path / "text.pt")
    given = ScoreConfig(heads={"text": HeadConfig(path=str(tmp_path / "text.pt"), output="sigmoid")})
    heads = [Head.load(name, head) for name, head in given.heads.items()]
    table = pa.table({"key": ["a", "b"], "caption": ["100", "010"]})
    write_table(table, tmp_path / "d.parquet", "download")
    images = [("a", flat(9, 0, 0)), ("b", flat(0, 9, 0))]
    score_shard(iter(images), tmp_path / "d.parquet", tmp_path / "s.parquet", scorer, heads)
    scores = read_table(tmp_path / "s.parquet", "scores")
    assert scores["text"].to_pylist() == pytest.approx([1 / (1 + np.exp(-4)), 1 / (1 + np.exp(4))])
    config = create_model("WithOverlaid", __base__=(SelectConfig, overlaid.keys))(overlaid_below=0.5)
    assert isinstance(config, SelectConfig)
    columns = {name: scores[name] for name in ("clip_similarity", "text")}
    assert reasons([row(0), row(1)], config, columns) == ["overlaid", None]


def test_images_are_decoded_in_threads_ahead_of_the_device(
    scorer: ClipScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"{number:02d}" for number in range(17)]
    write_table(pa.table({"key": keys, "caption": ["1000", "010"] * 8 + [None]}), tmp_path / "d.parquet", "download")
    monkeypatch.setattr(scorer, "tokenize", lambda texts: torch.tensor([[len(t), 1, t == "1000"] for t in texts]))
    log: list[str] = []
    threads: set[str] = set()
    together = threading.Barrier(2)

    def decode(number: int) -> np.ndarray:
        threads.add(threading.current_thread().name)
        if number < 2:
            together.wait(30)
        return flat(number + 1, 17 - number, 3)

    start = scorer.encode_images

    def encode(pixels: torch.Tensor) -> Any:
        copy = start(pixels)
        number, wait = sum(entry.startswith("start") for entry in log), copy.wait
        log.append(f"start {number}")
        copy.wait = lambda: log.append(f"wait {number}") or wait()  # type: ignore[func-returns-value, method-assign]
        return copy

    monkeypatch.setattr(scorer, "encode_images", encode)
    images = [(key, number) for number, key in enumerate(keys)]
    two = tmp_path / "two.parquet"
    score_shard(images, tmp_path / "d.parquet", two, scorer, decode=decode, threads=2)
    assert len(threads) == 2 and threading.current_thread().name not in threads
    # The features of a batch are waited for when the next one is under way.
    assert log[:4] == ["start 0", "start 1", "wait 0", "start 2"] and log[-2:] == ["wait 7", "wait 8"]
    scores = read_table(two, "scores")["clip_similarity"].to_pylist()
    assert len(set(scores)) > 10 and None not in scores
    text = {"1000": (4, 1, 1), "010": (3, 1, 0), "": (0, 1, 0)}  # a batch is sorted by length
    for number, (score, caption) in enumerate(zip(scores, ["1000", "010"] * 8 + [""], strict=True)):
        colour = np.array([number + 1, 17 - number, 3])
        expected = colour @ text[caption] / np.linalg.norm(colour) / np.linalg.norm(text[caption])
        assert score == pytest.approx(float(expected), abs=1e-5)
