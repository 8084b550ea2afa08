"""The network of the FID, loaded from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dataprep.io.errors import UserError
from dataprep.io.model_imports import declare_torchvision_operators
from eval.metrics.config import FeaturesConfig
from eval.metrics.feature_extractors import load_extractor
from tests.helpers.judged import fake_clip


def test_inception_gives_its_last_pooling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of the FID, with random weights from a file, on images of two sizes."""
    declare_torchvision_operators()
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    network = theirs.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network, "load_state_dict", lambda *_: None)
        torch.save(network("inception", ["2048"]).state_dict(), tmp_path / "weights.pth")
    config = FeaturesConfig(model="inception", pretrained=str(tmp_path / "weights.pth"))
    images = [np.full((side, side, 3), 40 * side, np.uint8) for side in (3, 3, 4)]
    found = load_extractor(config, fake_clip()).image_features(images)
    assert found.shape == (3, 2048)
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    (tmp_path / "weights.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not the weights of Inception"):
        load_extractor(config, fake_clip())
