"""The CLIP scorer on fake towers, and errors for wrong names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataprep.io.errors import UserError
from eval.clip.scorer import ClipScorer, check_spec
from tests.helpers.scoring import flat, make_scorer


@pytest.fixture
def scorer() -> ClipScorer:
    return make_scorer()


def test_similarity_is_the_cosine(scorer: ClipScorer) -> None:
    images = [flat(10, 0, 0), flat(0, 20, 0), flat(30, 30, 0), flat(0, 0, 5), flat(1, 0, 0)]
    scores = scorer.similarity(images, ["100", "100", "100", "001", "100"])
    np.testing.assert_allclose(scores, [1, 0, 2**-0.5, 1, 1], atol=1e-6)
    assert scores.dtype == np.float32
    assert scorer.similarity([], []).shape == (0,)
    assert np.allclose(np.linalg.norm(scorer.image_features(images), axis=1), 1)
    with pytest.raises(ValueError, match="2 images for 1"):
        scorer.similarity(images[:2], ["100"])


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
