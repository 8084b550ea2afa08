"""Images to feature vectors: by CLIP, any image tower of open_clip or transformers, or the Inception of the FID."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch

from dataprep.io.errors import UserError
from dataprep.io.model_imports import declare_torchvision_operators
from eval.clip.scorer import ClipScorer
from eval.metrics.config import INCEPTION, OWN_CLIP, FeaturesConfig
from eval.metrics.feature_models import is_transformers_folder


class FeatureExtractor(Protocol):
    """A model that maps images to features."""

    def image_features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Maps N uint8 images (H, W, 3) of any size to float32 (N, D)."""
        ...


def load_extractor(config: FeaturesConfig, own: ClipScorer, device: str = "cpu") -> FeatureExtractor:
    """Loads a feature model; ``own`` is the run's CLIP. Raises UserError for one that cannot be loaded."""
    if config.model == OWN_CLIP:
        return own
    if config.model == INCEPTION:
        assert config.pretrained is not None
        return InceptionExtractor(config.pretrained, device)
    if is_transformers_folder(config.model):
        from eval.metrics.transformers_features import TransformersExtractor

        return TransformersExtractor(config.model, device)
    return ClipScorer.load({"model": config.model, "pretrained": config.pretrained}, device)


class InceptionExtractor:
    """Inception's last pooling, 2048 features, by the package torch-fidelity."""

    def __init__(self, weights: str, device: str = "cpu", batch_size: int = 32) -> None:
        declare_torchvision_operators()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError("evaluate.features: inception needs torch-fidelity; pip install imagen-ray[fid]") from error
        try:
            model = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=weights)
        except Exception as error:  # torch.load raises many types on a file that holds no weights
            raise UserError(f"evaluate.features: {weights} is not the weights of Inception ({error})") from error
        self.model: Any = model.to(device).eval()
        self.device, self.batch_size = device, batch_size

    @torch.inference_mode()
    def image_features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Maps N uint8 images (H, W, 3) to float32 (N, 2048); each is resized to 299 x 299 as TensorFlow 1 did."""
        parts = []
        for _, alike in groupby(images, key=lambda image: image.shape):
            same = list(alike)
            for start in range(0, len(same), self.batch_size):
                pixels_BHWC = torch.from_numpy(np.stack(same[start : start + self.batch_size]))
                parts.append(self.model(pixels_BHWC.permute(0, 3, 1, 2).to(self.device))[0].float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 2048), np.float32)
