"""Frozen text towers: the mean of the encoder's tokens, whatever the padding; and the folder of a CLIP with one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dataprep.io.errors import UserError
from dataprep.text.encoder import TextEncoder
from eval.clip.fast_inference import encode_captions
from tests.helpers.encoders import save_encoder
from train.models.clip import load_clip, save_clip
from train.models.clip_config import ClipModelConfig
from train.models.clip_text import PADDING, FrozenText, pool_tokens

CAPTIONS = ["a red circle", "blue", "a red circle left of a blue square", ""]


def frozen_config(**changes: object) -> ClipModelConfig:
    return ClipModelConfig.model_validate(
        {"image_size": 32, "embed_dim": 16, "text_tower": "frozen", "context_length": 10} | changes
    )


@pytest.mark.parametrize(("kind", "ends"), [("t5", True), ("bert", True), ("roberta", True), ("bert", False)])
def test_a_caption_is_the_mean_of_its_tokens(kind: str, ends: bool, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path, kind, ends=ends)
    tower, encoder = FrozenText(frozen_config(), folder), TextEncoder.from_folder(folder)
    ids_BL = tower.tokenize(CAPTIONS)
    assert ids_BL.shape == (4, 10) and (ids_BL[1] != PADDING).sum() == 1 + ends
    found = tower.read(ids_BL)
    assert not found.requires_grad and found.dtype == torch.float32
    for feature_W, tokens_LW in zip(found, encoder.encode(CAPTIONS), strict=True):
        expected = tokens_LW.mean(0) if len(tokens_LW) else np.zeros(encoder.dim)
        np.testing.assert_allclose(feature_W, expected, atol=1e-5)


def test_captions_are_cut_to_the_length(tmp_path: Path) -> None:
    tower = FrozenText(frozen_config(context_length=4), save_encoder(tmp_path, "t5"))
    assert tower.tokenize(CAPTIONS)[2].tolist() == [3, 4, 6, 1]


def test_a_loaded_clip_reads_captions_as_it_was_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = FrozenText(frozen_config(image_tower="vit"), save_encoder(tmp_path / "encoder", "bert"))
    model = tower.build()
    save_clip(tmp_path / "clip", model.state_dict(), tower.config, tower)
    loaded, config, text = load_clip(tmp_path / "clip")
    assert config == tower.config and not any(parameter.requires_grad for parameter in loaded.parameters())
    image_BCHW, ids_BL = torch.rand(4, 3, 32, 32), text.tokenize(CAPTIONS)
    assert torch.equal(ids_BL, tower.tokenize(CAPTIONS))
    image_BD, text_BD, scale = model(image_BCHW, tower.read(ids_BL))
    assert scale.item() == pytest.approx(1 / 0.07)
    normalize = torch.nn.functional.normalize
    torch.testing.assert_close(normalize(loaded.encode_image(image_BCHW), dim=-1), image_BD)  # type: ignore[operator]
    torch.testing.assert_close(normalize(encode_captions(loaded, ids_BL), dim=-1), text_BD)


def test_padding_of_all_captions_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = FrozenText(frozen_config(), save_encoder(tmp_path, "t5"))
    clip = tower.attach(tower.build())
    widths: list[int] = []

    def spy(encoder: object, ids_BL: torch.Tensor) -> torch.Tensor:
        widths.append(ids_BL.shape[1])
        return pool_tokens(encoder, ids_BL)

    monkeypatch.setattr("train.models.clip_text.pool_tokens", spy)
    encode_captions(clip, tower.tokenize(CAPTIONS[:2]))
    assert widths == [4]


def test_a_folder_whose_encoder_is_gone(tmp_path: Path) -> None:
    tower = FrozenText(frozen_config(), save_encoder(tmp_path / "encoder", "t5"))
    save_clip(tmp_path / "clip", tower.build().state_dict(), tower.config, tower)
    (tmp_path / "clip/frozen_text").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"clip: not loadable .*has no config.json"):
        load_clip(tmp_path / "clip")
