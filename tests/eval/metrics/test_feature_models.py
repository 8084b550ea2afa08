"""Names of distances, and errors for feature models that cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from eval.metrics.config import FeaturesConfig
from eval.metrics.feature_models import ClipIdentity, check_feature_models, describe_space, distance_name


def test_only_the_weights_of_the_fid_make_an_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"something else")
    config = FeaturesConfig(model="inception", pretrained=str(weights))
    assert distance_name(config) == "fd_inception"
    assert "weights of w.pth" in describe_space(config, ClipIdentity("", "", None)).model
    monkeypatch.setattr("eval.metrics.feature_models.sha256_file", lambda path: ("6726825d" + "0" * 56, 1))
    assert distance_name(config) == "fid"
    assert distance_name(FeaturesConfig()) == "fd_clip"
    assert distance_name(FeaturesConfig(model="ViT-B-32", pretrained="openai")) == "fd_vit_b_32"
    assert check_feature_models([config]) == [str(weights)]


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ([FeaturesConfig(model="inception")], "inception's pretrained=None is no local file"),
        ([FeaturesConfig(model="ViT-B-33")], r"evaluate.features.model=ViT-B-33.*did you mean"),
        ([FeaturesConfig(), FeaturesConfig()], "two models have the same name"),
    ],
)
def test_wrong_features(configs: list[FeaturesConfig], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_feature_models(configs)
