"""Features of models of transformers: DINOv2 as transformers computes it, its Frechet distance, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.linalg import sqrtm

from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_transformers
from dataprep.synthetic.grammar import sample_claim
from dataprep.synthetic.renderer import draw_scene
from eval.clip.scorer import ClipScorer
from eval.metrics.config import FeaturesConfig
from eval.metrics.distances import describe_distances
from eval.metrics.feature_extractors import load_extractor
from eval.metrics.feature_models import ClipIdentity, check_feature_models, describe_space
from eval.metrics.feature_sets import FeatureSet
from eval.metrics.transformers_features import TransformersExtractor
from tests.helpers.foreign import save_clip_of_transformers, save_dinov2

CLIP = ClipIdentity("ViT-B-32", "openai", 224)


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_dinov2(tmp_path_factory.mktemp("models") / "dino")


def drawings(count: int, seed: int, side: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [draw_scene(sample_claim(rng), rng, side) for _ in range(count)]


def expected_features(folder: str, images: list[np.ndarray]) -> np.ndarray:
    """Class tokens after the last norm, by transformers' model called by hand, in float64."""
    model = import_transformers().Dinov2Model.from_pretrained(folder).double().eval()
    rows = []
    for image in images:
        small = np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC), np.float64)
        pixels = torch.from_numpy((small / 255 - 0.5) / 0.25).permute(2, 0, 1)[None]
        with torch.no_grad():
            rows.append(model(pixel_values=pixels).last_hidden_state[0, 0].numpy())
    return np.stack(rows)


def test_features_and_distance_are_those_of_an_independent_computation(dino: str) -> None:
    real, fake = drawings(60, 1), [cv2.GaussianBlur(image, (0, 0), 2) for image in drawings(60, 2)]
    extractor = load_extractor(FeaturesConfig(model=dino), None)  # type: ignore[arg-type]
    assert isinstance(extractor, TransformersExtractor)
    features = [extractor.image_features(images) for images in (real, fake)]
    expected = [expected_features(dino, images) for images in (real, fake)]
    for ours, theirs in zip(features, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    sets = []
    for rows in features:
        sets.append(FeatureSet(rows.shape[1]))
        sets[-1].add([str(number) for number in range(len(rows))], rows)
    space = describe_space(FeaturesConfig(model=dino), CLIP)
    found = describe_distances(sets[0], sets[1], space)
    one, other = (rows.astype(np.float64) for rows in features)
    covariances = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = sqrtm(covariances[0] @ covariances[1]).real
    distance = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert found["fd"] == pytest.approx(distance, rel=1e-6)
    assert found["name"] == "fd_dino" and found["kid"] is not None
    assert (found["resolution"], len(found["weights"])) == (28, 16)
    assert found["model"] == "dinov2 of transformers (dino)"


def test_a_clip_of_transformers_gives_its_image_features(tmp_path: Path) -> None:
    folder = save_clip_of_transformers(tmp_path / "clip")
    images = drawings(3, 1)
    found = TransformersExtractor(folder).image_features(images)
    model = import_transformers().CLIPModel.from_pretrained(folder).eval()
    pixels = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in images]
    inputs = torch.from_numpy((np.stack(pixels).astype(np.float32) / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(pixel_values=inputs).pooler_output)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert TransformersExtractor(folder).image_features([]).shape[0] == 0


def copy_folder(source: str, target: Path) -> Path:
    target.mkdir()
    for path in Path(source).iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_wrong_folders(dino: str, tmp_path: Path) -> None:
    unknown = copy_folder(dino, tmp_path / "unknown")
    (unknown / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json, which says how images"):
        check_feature_models([FeaturesConfig(model=str(unknown))])
    (unknown / "preprocessor_config.json").write_text(json.dumps({"size": 28}))
    with pytest.raises(UserError, match="lacks size, image_mean or image_std"):
        check_feature_models([FeaturesConfig(model=str(unknown))])
    (unknown / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        check_feature_models([FeaturesConfig(model=str(unknown))])

    partial = copy_folder(dino, tmp_path / "partial")
    tensors = load_file(partial / "model.safetensors")
    dropped = next(name for name in tensors if "layer.0" in name)
    save_file({k: v for k, v in tensors.items() if k != dropped}, partial / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing \(first: .*layer.0.*whole checkpoint"):
        TransformersExtractor(str(partial))
    (partial / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"partial cannot be loaded \(.*\); give a whole folder"):
        TransformersExtractor(str(partial))


def test_a_pooler_without_weights_is_not_used(tmp_path: Path) -> None:
    """A ViT from masked autoencoding has none: transformers would make a random one."""
    transformers = import_transformers()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    model = transformers.ViTModel(
        transformers.ViTConfig(image_size=28, patch_size=14, **sizes), add_pooling_layer=False
    )
    model.eval().save_pretrained(tmp_path)
    settings = {"size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (image,) = drawings(1, 1, 28)
    pixels = torch.from_numpy((image.astype(np.float32) / 255 - 0.5) / 0.25).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = model(pixel_values=pixels).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(TransformersExtractor(str(tmp_path)).image_features([image]), expected, atol=1e-5)


def test_own_clip_is_described_by_its_weights() -> None:
    space = describe_space(FeaturesConfig(), CLIP)
    assert (space.weights, space.resolution, space.unit_length) == ("openai", 224, True)
    assert space.model == "image tower of the scoring CLIP (ViT-B-32), unit length"
    own = object.__new__(ClipScorer)
    assert load_extractor(FeaturesConfig(), own) is own
