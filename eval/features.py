"""Pictures to feature vectors: by CLIP, by any open_clip image tower, by the Inception network of the FID."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import Field

from dataprep.schema import Config, UserError
from dataprep.storage import join, list_files, sha256_file
from dataprep.torchvision_operators import declare_torchvision_operators
from eval.clip import ClipScorer, check_spec

OWN, INCEPTION = "clip", "inception"
# What the FID is defined on: Inception's weights of 2015-12-05 as torch-fidelity publishes them, whose file's sha256
# begins so. Any other weights give a Frechet distance too, but not one to hold beside published FIDs.
FID_WEIGHTS, FID = "6726825d", "fid"


class FeaturesConfig(Config):
    """A feature space to measure distances in."""

    model: str = Field(OWN, description="clip: the run's own; inception; or an open_clip name or an exported folder")
    pretrained: str | None = Field(None, description="open_clip tag, or the local file of the weights")

    @property
    def key(self) -> str:
        """What its figures are called by: ``fd_<key>`` and so on."""
        return re.sub(r"[^a-z0-9]+", "_", Path(self.model).name.lower()).strip("_")


class Extractor(Protocol):
    """A feature model."""

    def image_features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 (H, W, 3) of any size -> float32 (N, D)."""
        ...


def check_features(configs: Sequence[FeaturesConfig]) -> list[str]:
    """The local files that the feature models are loaded from; UserError for one that cannot be loaded by its name."""
    files = []
    for config in configs:
        if config.model == INCEPTION:
            if config.pretrained is None or not Path(config.pretrained).is_file():
                raise UserError(
                    f"evaluate.features: inception's pretrained={config.pretrained} is no local file; give that of its "
                    "weights, such as weights-inception-2015-12-05-6726825d.pth"
                )
        elif config.model != OWN:
            try:
                check_spec(config.model, config.pretrained)
            except UserError as error:
                raise UserError(str(error).replace("clip.", "evaluate.features.", 1)) from error
        for name in (config.model, config.pretrained):
            if name and Path(name).exists():
                files += [name] if Path(name).is_file() else [join(name, part) for part in list_files(name)]
    if len({config.key for config in configs}) < len(configs):
        raise UserError("evaluate.features: two models have the same name; leave one out")
    return files


def load_extractor(config: FeaturesConfig, own: ClipScorer, device: str = "cpu") -> Extractor:
    """The feature model of ``config``; ``own`` is the run's CLIP. UserError where it cannot be loaded."""
    if config.model == OWN:
        return own
    if config.model == INCEPTION:
        assert config.pretrained is not None
        return Inception(config.pretrained, device)
    return ClipScorer.load({"model": config.model, "pretrained": config.pretrained}, device)


def distance_name(config: FeaturesConfig) -> str:
    """What the Frechet distance is called: "fid" on the weights that the FID is defined on alone, else ``fd_<key>``."""
    return FID if is_fid(config) else f"fd_{config.key}"


def is_fid(config: FeaturesConfig) -> bool:
    """Whether ``config`` is Inception with the very weights of the FID, by the file's hash."""
    return (
        config.model == INCEPTION
        and config.pretrained is not None
        and sha256_file(config.pretrained)[0].startswith(FID_WEIGHTS)
    )


def describe_features(config: FeaturesConfig, clip: str) -> str:
    """The feature model in words, for people; ``clip`` says which CLIP the run has."""
    if config.model == OWN:
        return f"image tower of the run's CLIP ({clip}), unit length"
    if config.model == INCEPTION:
        name = "2015-12-05, pool3" if is_fid(config) else f"weights of {Path(str(config.pretrained)).name}"
        return f"Inception v3 ({name})"
    return f"image tower of open_clip's {config.model} ({config.pretrained}), unit length"


class Inception:
    """The 2048 features of Inception's last pooling, as torch-fidelity computes them; needs that package."""

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
        """uint8 (H, W, 3) -> float32 (N, 2048); each picture is scaled to 299 x 299 as TensorFlow 1 did."""
        parts = []
        for _, alike in groupby(images, key=lambda image: image.shape):
            same = list(alike)
            for start in range(0, len(same), self.batch_size):
                pixels_BHWC = torch.from_numpy(np.stack(same[start : start + self.batch_size]))
                parts.append(self.model(pixels_BHWC.permute(0, 3, 1, 2).to(self.device))[0].float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 2048), np.float32)
