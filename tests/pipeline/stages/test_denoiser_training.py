"""What stages that train a denoiser share: the files of a perceptual term count, and are found before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from pipeline.config_loading import load_config
from pipeline.stages.denoiser_training import list_denoiser_sources
from tests.helpers.paths import ROOT


def test_the_weights_of_a_perceptual_term_are_sources(tmp_path: Path) -> None:
    files = {"weights": tmp_path / "vgg16.pth", "lpips": tmp_path / "vgg.pth"}
    given = [f"train.base.perceptual.{name}={path}" for name, path in files.items()]
    config = load_config(str(ROOT / "configs/smoke.yaml"), given)
    for name, path in files.items():
        with pytest.raises(UserError, match=rf"train\.base\.perceptual\.{name}={path}: no such file"):
            list_denoiser_sources(config, "base")
        path.write_bytes(b"weights")
    assert list_denoiser_sources(config, "base") == [str(path) for path in files.values()]
    assert list_denoiser_sources(config, next(name for name in config.train if name != "base")) == []
