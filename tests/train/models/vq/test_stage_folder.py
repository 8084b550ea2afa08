"""Autoencoders on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dataprep.io.errors import UserError
from dataprep.io.storage import read_json, write_json
from tests.train.models.vq.test_autoencoder import build
from train.models.vq.autoencoder import VqAutoencoder
from train.models.vq.config import PRESETS
from train.models.vq.stage_folder import CONFIG_FILE, load_autoencoder, save_autoencoder

LAYOUT = PRESETS["vq-micro"]


def test_an_autoencoder_is_read_as_it_was_written(tmp_path: Path) -> None:
    model = build()
    save_autoencoder(tmp_path, model.state_dict(), LAYOUT, 7)
    loaded = load_autoencoder(tmp_path)
    image_BCHW = torch.rand(1, 3, 8, 8) * 2 - 1
    assert torch.equal(loaded(image_BCHW).image_BCHW, model(image_BCHW).image_BCHW)
    assert not loaded.training and not any(param.requires_grad for param in loaded.parameters())
    assert read_json(str(tmp_path / CONFIG_FILE))["trained_steps"] == 7


def test_what_is_no_trained_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="or its weights are missing; train task: vq first"):
        load_autoencoder(tmp_path / "none")
    save_autoencoder(tmp_path, VqAutoencoder(LAYOUT).state_dict(), LAYOUT, 0)
    with pytest.raises(UserError, match="its codebook was never trained"):
        load_autoencoder(tmp_path)
    settings = read_json(str(tmp_path / CONFIG_FILE))
    write_json(str(tmp_path / CONFIG_FILE), settings | {"model": settings["model"] | {"codes": 3}})
    with pytest.raises(UserError, match=r"does not fit its weights.*codebook.*train again"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize(("text", "message"), [('{"model": ', "is no JSON"), ("[1, 2]", "does not fit its weights")])
def test_settings_that_are_no_mapping_are_refused(tmp_path: Path, text: str, message: str) -> None:
    save_autoencoder(tmp_path, build().state_dict(), LAYOUT, 7)
    (tmp_path / CONFIG_FILE).write_text(text)
    with pytest.raises(UserError, match=rf"config\.json: {message}.*; train again"):
        load_autoencoder(tmp_path)
