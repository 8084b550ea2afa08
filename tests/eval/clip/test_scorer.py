"""The CLIP scorer on fake towers, its table of scores, and errors for wrong names."""

from __future__ import annotations

from collections.abc import Sequence
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
from dataprep.io.errors import UserError
from dataprep.io.parquet import read_table, write_table
from dataprep.io.scorer_heads import HEADS, ScorerHead
from eval.clip.config import HeadConfig, ScoreConfig
from eval.clip.heads import Head
from eval.clip.scorer import ClipScorer, check_spec, score_shard
from tests.helpers.selection import reasons, row


class Towers:
    """Features are the mean colour, and what a caption spells in digits."""

    def encode_image(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        return image_BHWC.float().mean((1, 2))

    def encode_text(self, ids_BL: torch.Tensor) -> torch.Tensor:
        return ids_BL.float()


@pytest.fixture
def scorer() -> ClipScorer:
    def tokenize(captions: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[int(letter) for letter in caption] for caption in captions])

    return ClipScorer(Towers(), torch.from_numpy, tokenize, batch_size=2)


def flat(*colour: int) -> np.ndarray:
    return np.full((4, 4, 3), colour, np.uint8)


def test_similarity_is_the_cosine(scorer: ClipScorer) -> None:
    images = [flat(10, 0, 0), flat(0, 20, 0), flat(30, 30, 0), flat(0, 0, 5), flat(1, 0, 0)]
    scores = scorer.similarity(images, ["100", "100", "100", "001", "100"])
    np.testing.assert_allclose(scores, [1, 0, 2**-0.5, 1, 1], atol=1e-6)
    assert scores.dtype == np.float32
    assert scorer.similarity([], []).shape == (0,)
    assert np.allclose(np.linalg.norm(scorer.image_features(images), axis=1), 1)
    with pytest.raises(ValueError, match="2 images for 1"):
        scorer.similarity(images[:2], ["100"])


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
    score_shard(iter(images), tmp_path / "d.parquet", tmp_path / "s.parquet", scorer, heads, embeddings=True)
    scores = read_table(tmp_path / "s.parquet", "scores")
    assert scores.schema.field("aesthetic").type == pa.float32()
    assert scores["aesthetic"].to_pylist() == pytest.approx([5.0, None, 0.0])
    assert scores.schema.field("clip_embedding").type == pa.binary(6)
    features = [value and np.frombuffer(value, "<f2") for value in scores["clip_embedding"].to_pylist()]
    assert features[1] is None
    np.testing.assert_allclose(features[2], [0, 0.6, 0.8], atol=1e-3)
    score_shard(iter([]), tmp_path / "d.parquet", tmp_path / "none.parquet", scorer, heads, embeddings=True)
    empty = read_table(tmp_path / "none.parquet", "scores")
    assert empty.schema == scores.schema and empty["aesthetic"].null_count == 3


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


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-33", None, "did you mean ViT-B-32"),
        ("ViT-B-32", None, "clip.pretrained: missing"),
        ("ViT-B-32", "nothing", "neither a file nor a tag"),
        ("some/folder", None, "no folder with a clip.json"),
    ],
)
def test_wrong_names(model: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_spec(model, pretrained)
    with pytest.raises(UserError, match=message):
        ClipScorer.load({"model": model, "pretrained": pretrained})


def test_known_names_pass() -> None:
    check_spec("ViT-B-32", "openai")
    check_spec("hf-hub:org/model", None)
    with pytest.raises(UserError, match="names no model"):
        ClipScorer.load({"model": None, "pretrained": None})


def test_broken_folder(tmp_path: Path) -> None:
    (tmp_path / "clip.json").write_text('{"format": 1, "model": {}}')
    with pytest.raises(UserError, match=r"model.safetensors is missing"):
        ClipScorer.load(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not loadable"):
        ClipScorer.load(str(tmp_path))
    (tmp_path / "clip.json").write_text('{"format": 9}')
    with pytest.raises(UserError, match="format 9"):
        ClipScorer.load(str(tmp_path))


def test_local_weights_of_an_open_clip_model(tmp_path: Path) -> None:
    """A real open_clip architecture with weights from a file, through its own preprocessing."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt", pretrained=None)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    scorer = ClipScorer.load({"model": "ViT-S-32-alt", "pretrained": str(tmp_path / "weights.pt")})
    assert scorer.similarity([flat(9, 9, 9)], ["a dog"]).shape == (1,)


@pytest.mark.parametrize(("pretrained", "quick"), [("openai", True), ("laion2b_s32b_b82k", False)])
def test_the_activation_is_the_one_that_the_weights_were_trained_with(
    pretrained: str, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip
    from open_clip.transformer import QuickGELU

    create, built = open_clip.create_model_and_transforms, []

    def untrained(name: str, pretrained: str, **options: Any) -> Any:
        made = create("ViT-S-32-alt", pretrained=None, **options)
        built.append(made[0])
        return made

    monkeypatch.setattr(open_clip, "create_model_and_transforms", untrained)
    ClipScorer.load({"model": "ViT-L-14", "pretrained": pretrained})
    assert any(isinstance(module, QuickGELU) for module in built[0].modules()) is quick
