"""ImageReward from a small file in its layout, against timm's vision transformer and transformers' BERT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dataprep.io.errors import UserError
from dataprep.io.model_imports import declare_torchvision_operators, import_transformers
from eval.metrics.judges.config import JudgeConfig
from eval.metrics.judges.imagereward import MEAN, PIXEL_MEAN, PIXEL_STD, STD, TOKENS, prepare_image
from eval.metrics.judges.registry import JUDGES

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat")
PROMPTS = ["a red cat", "a dog", "cat " * 60]
NO_CLIP: Any = None
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"vocab_size": len(WORDS), "max_position_embeddings": 40, "hidden_act": "gelu", "layer_norm_eps": 1e-12}


def make_images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, np.uint8) for size in ((40, 40, 3), (32, 48, 3), (64, 64, 3))]


def build_vision() -> Any:
    """Returns timm's vision transformer of 32 pixels, which has BLIP's names."""
    declare_torchvision_operators()
    from timm.models.vision_transformer import VisionTransformer

    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
    return VisionTransformer(**sizes, num_classes=0, global_pool="").eval()


def build_text() -> Any:
    """Returns transformers' BERT with attention to the image and without a causal mask, as BLIP runs it."""
    transformers = import_transformers()
    config = transformers.BertConfig(**SIZES, is_decoder=True, add_cross_attention=True)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    for layer in model.encoder.layer:  # the keys of the attention to the image are as wide as its patches
        attention = layer.crossattention.self
        attention.key, attention.value = nn.Linear(128, 32), nn.Linear(128, 32)
    for module in model.modules():
        if getattr(module, "is_causal", False):
            module.is_causal = False
    model.config.is_decoder = False
    model.embeddings.token_type_embeddings.weight.data.zero_()  # BLIP has none
    return model


def shake(model: nn.Module) -> None:
    """Makes every bias and norm matter."""
    for parameter in model.parameters():
        if parameter.any():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any, nn.Sequential]:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(32, 16), nn.Dropout(), nn.Linear(16, 8), nn.Linear(8, 1)).eval()
    vision, text = build_vision(), build_text()
    for part in (vision, text):
        shake(part)
    return vision, text, head


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, parts: tuple[Any, Any, nn.Sequential]) -> str:
    """The published layout: one file of all tensors, BLIP's text settings, BERT's words."""
    folder = tmp_path_factory.mktemp("reward")
    vision, text, head = parts
    tensors: dict[str, Tensor] = {f"blip.visual_encoder.{name}": value for name, value in vision.state_dict().items()}
    own = {name: value for name, value in text.state_dict().items() if "token_type" not in name}
    tensors |= {f"blip.text_encoder.{name}": value for name, value in own.items()}
    tensors["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    tensors |= {f"mlp.layers.{name}": value for name, value in head.state_dict().items()}
    torch.save(tensors, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(SIZES | {"type_vocab_size": 2, "encoder_width": 768}))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return str(folder)


def test_the_score_is_that_of_the_libraries_networks(folder: str, parts: tuple[Any, Any, nn.Sequential]) -> None:
    config = JudgeConfig(kind="imagereward", model=folder)
    assert JUDGES["imagereward"].check(config) == [
        f"{folder}/{name}" for name in ("ImageReward.pt", "med_config.json", "vocab.txt")
    ]
    images = make_images()
    scores = [value["score"] for value in JUDGES["imagereward"].load(config, NO_CLIP, "cpu")(images, PROMPTS)]
    vision, text, head = parts
    tokenizer = import_transformers().BertTokenizer(f"{folder}/vocab.txt")
    words = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    assert words["input_ids"].shape == (3, 35)
    with torch.no_grad():
        patches_BLD = vision.forward_features(torch.stack([prepare_image(image, 32) for image in images]))
        states_BLD = text(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"], encoder_hidden_states=patches_BLD
        ).last_hidden_state
        wanted = (head(states_BLD[:, 0])[:, 0] - MEAN) / STD
    np.testing.assert_allclose(scores, wanted.numpy(), rtol=1e-4, atol=1e-5)
    assert len({round(score, 4) for score in scores}) == 3
    assert JUDGES["imagereward"].describe(config)["resolution"] == 224


def test_images_are_resized_by_their_shorter_side_and_cut_in_the_centre() -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    for image in make_images():
        shown = transforms.resize(Image.fromarray(image), 32, InterpolationMode.BICUBIC)
        pixels = transforms.to_tensor(transforms.center_crop(shown, 32))
        wanted = transforms.normalize(pixels, list(PIXEL_MEAN), list(PIXEL_STD))
        torch.testing.assert_close(prepare_image(image, 32), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ImageReward.pt", "med_config.json", "vocab.txt"])
def test_a_folder_that_lacks_a_file_is_refused(folder: str, tmp_path: Path, name: str) -> None:
    for file in Path(folder).iterdir():
        if file.name != name:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(UserError, match=rf"imagereward=.* has no {name}; give a folder with ImageReward\.pt"):
        JUDGES["imagereward"].check(JudgeConfig(kind="imagereward", model=str(tmp_path)))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("blip.text_encoder.encoder.layer.1.crossattention.self.key.weight"),
        lambda tensors: tensors.update({"blip.text_encoder.pooler.weight": torch.ones(1)}),
        lambda tensors: tensors.pop("blip.visual_encoder.norm.weight"),
        lambda tensors: tensors.clear(),
    ],
)
def test_weights_of_another_layout_are_refused(folder: str, tmp_path: Path, change: Any) -> None:
    tensors = torch.load(f"{folder}/ImageReward.pt")
    change(tensors)
    torch.save(tensors, tmp_path / "ImageReward.pt")
    for name in ("med_config.json", "vocab.txt"):
        (tmp_path / name).symlink_to(Path(folder) / name)
    config = JudgeConfig(kind="imagereward", model=str(tmp_path))
    with pytest.raises(UserError, match=r"imagereward=.* cannot be loaded"):
        JUDGES["imagereward"].load(config, NO_CLIP, "cpu")
