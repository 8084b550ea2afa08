"""PickScore, HPS and aesthetic scores from small local weights, against the libraries' own models by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_open_clip, import_transformers
from eval.clip.scorer import ClipScorer
from eval.metrics.base import JudgedSamples
from eval.metrics.config import EvaluateConfig
from eval.metrics.judgements import Judgements
from eval.metrics.judges.base import Verdict
from eval.metrics.judges.config import JudgeConfig
from eval.metrics.judges.registry import JUDGES
from tests.helpers.foreign import save_clip_of_transformers

NO_CLIP: Any = None
IMAGES = [np.full((40, 40, 3), value, np.uint8) for value in (30, 200)]
PROMPTS = ["a red circle", "a blue square"]


def test_pickscore_is_the_scaled_cosine(tmp_path: Path) -> None:
    folder = save_clip_of_transformers(tmp_path / "pick")
    config = JudgeConfig(kind="pickscore", model=folder)
    assert f"{folder}/model.safetensors" in JUDGES["pickscore"].check(config)
    scores = [value["score"] for value in JUDGES["pickscore"].load(config, NO_CLIP, "cpu")(IMAGES, PROMPTS)]
    transformers = import_transformers()
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    texts = transformers.AutoTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
    pixels = [np.asarray(Image.fromarray(image).resize((32, 32))) for image in IMAGES]
    inputs = torch.from_numpy((np.stack(pixels).astype(np.float32) / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model(pixel_values=inputs, **texts).logits_per_image.diagonal()
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-4)
    assert JUDGES["pickscore"].describe(config) == {"model": "CLIP of transformers", "resolution": 32}


def test_hps_is_the_cosine_of_open_clips_model(tmp_path: Path) -> None:
    open_clip = import_open_clip()
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt").eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "hps.pt")  # as HPS_v2_compressed.pt holds it
    config = JudgeConfig(kind="hps", model=str(tmp_path / "hps.pt"), architecture="ViT-S-32-alt")
    assert JUDGES["hps"].check(config) == [str(tmp_path / "hps.pt")]
    scores = [value["score"] for value in JUDGES["hps"].load(config, NO_CLIP, "cpu")(IMAGES, PROMPTS)]
    _, _, transform = open_clip.create_model_and_transforms("ViT-S-32-alt")
    inputs = torch.stack([transform(Image.fromarray(image)) for image in IMAGES])
    with torch.no_grad():
        image, text = model.encode_image(inputs), model.encode_text(open_clip.get_tokenizer("ViT-S-32-alt")(PROMPTS))
    expected = torch.nn.functional.cosine_similarity(image, text)
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)
    assert JUDGES["hps"].describe(config) == {"model": "open_clip's ViT-S-32-alt", "resolution": 224}
    assert JUDGES["hps"].describe(JudgeConfig(kind="hps", model="x"))["model"] == "open_clip's ViT-H-14"


class Means:
    """A CLIP whose features are the mean and its square."""

    def image_features(self, images: list[np.ndarray]) -> np.ndarray:
        return np.asarray([[image.mean() / 255, (image.mean() / 255) ** 2] for image in images], np.float32)


def test_aesthetic_score_of_the_scoring_clips_features(tmp_path: Path) -> None:
    torch.save({"weight": torch.tensor([[2.0, 3.0]]), "bias": torch.tensor([1.0])}, tmp_path / "head.pth")
    config = JudgeConfig(kind="aesthetic", model=str(tmp_path / "head.pth"))
    own: Any = Means()
    scores = [value["score"] for value in JUDGES["aesthetic"].load(config, own, "cpu")(IMAGES, PROMPTS)]
    shares = [30 / 255, 200 / 255]
    assert scores == pytest.approx([1 + 2 * share + 3 * share**2 for share in shares], rel=1e-5)
    assert "scoring CLIP" in JUDGES["aesthetic"].describe(config)["model"]


def test_an_aesthetic_head_over_a_clip_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": torch.tensor([[1.0, 0.0]])}, tmp_path / "head.pth")
    asked: list[Any] = []

    def load(spec: object, device: str) -> Means:
        asked.append((spec, device))
        return Means()

    monkeypatch.setattr(ClipScorer, "load", load)
    config = JudgeConfig(kind="aesthetic", model=str(tmp_path / "head.pth"), architecture="ViT-L-14:openai")
    (value,) = JUDGES["aesthetic"].load(config, NO_CLIP, "cpu")(IMAGES[:1], PROMPTS[:1])
    assert value["score"] == pytest.approx(30 / 255)
    assert asked == [({"model": "ViT-L-14", "pretrained": "openai"}, "cpu")]
    assert JUDGES["aesthetic"].describe(config)["model"] == "linear layers over open_clip's ViT-L-14:openai"


def test_metric_says_what_it_was_computed_with(tmp_path: Path) -> None:
    (tmp_path / "head.pth").write_bytes(b"weights")
    config = JudgeConfig(kind="aesthetic", model=str(tmp_path / "head.pth"))
    verdicts = {"aesthetic": [Verdict("a", {"score": 5.0}), Verdict("b", {"score": 7.0})]}
    found = Judgements().compute(JudgedSamples([], judges=[config], verdicts=verdicts))["judges"]["aesthetic"]
    assert found["values"]["mean score"]["value"] == 6
    assert found["values"]["mean score"]["low"] < 6 < found["values"]["mean score"]["high"]
    assert (found["images"], found["title"], len(found["weights"])) == (2, "Aesthetic score", 16)
    nothing = Judgements().compute(JudgedSamples([], judges=[config]))["judges"]["aesthetic"]
    assert (nothing["images"], nothing["values"]) == (0, {})
    assert Judgements().compute(JudgedSamples([])) == {}


@pytest.mark.parametrize("kind", ["hps", "aesthetic"])
def test_missing_files(kind: str) -> None:
    with pytest.raises(UserError, match=f"{kind}=/none is no local file; give the file of its weights"):
        JUDGES[kind].check(JudgeConfig(kind=kind, model="/none"))


def test_wrong_configs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pickscore=/none has no config\.json; give the folder of its weights"):
        JUDGES["pickscore"].check(JudgeConfig(kind="pickscore", model="/none"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"pickscore=.* cannot be loaded"):
        JUDGES["pickscore"].load(JudgeConfig(kind="pickscore", model=str(tmp_path)), NO_CLIP, "cpu")
    with pytest.raises(ValidationError, match="'clip' is unknown; take one of pickscore, hps, aesthetic"):
        JudgeConfig(kind="clip", model="x")
    with pytest.raises(ValidationError, match="judges: hps is named twice"):
        EvaluateConfig(judges=(JudgeConfig(kind="hps", model="x"), JudgeConfig(kind="hps", model="y")))
