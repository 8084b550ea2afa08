"""Image features of any local model that transformers' AutoModel loads, such as DINOv2.

Shape legend: N images, B batch, C channels, H W height and width, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_transformers, silence_load_report
from eval.metrics.feature_models import read_preprocessing


class TransformersExtractor:
    """The pooled feature of an image model: of DINOv2 the class token after the last norm, as published FDs use it.

    The whole image is resized to the model's input by bicubic interpolation, without a crop.
    """

    def __init__(self, folder: str, device: str = "cpu", batch_size: int = 32) -> None:
        self.folder, self.device, self.batch_size = folder, device, batch_size
        self.preprocessing = read_preprocessing(folder)
        transformers = import_transformers()
        try:
            with silence_load_report():
                model, report = transformers.AutoModel.from_pretrained(
                    folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
                )
        except Exception as error:  # transformers raises many types on a folder that it cannot load
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"evaluate.features: {folder} cannot be loaded ({reason}); give a whole folder") from error
        missing = sorted(report["missing_keys"])
        # A pooler that the checkpoint lacks would be random: the class token is taken in its place.
        self.pooled = not any("pooler" in name for name in missing)
        if lacking := [name for name in missing if "pooler" not in name]:
            raise UserError(
                f"evaluate.features: {folder}: {len(lacking)} weights are missing (first: {lacking[0]}), random ones "
                "would take their place; give a whole checkpoint"
            )
        self.model: Any = model.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def image_features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Maps N uint8 images (H, W, 3) of any size to float32 (N, D)."""
        parts = []
        for start in range(0, len(images), self.batch_size):
            pixels_BCHW = torch.stack([self._prepare(image) for image in images[start : start + self.batch_size]])
            parts.append(self._encode(pixels_BCHW.to(self.device)).float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    def _prepare(self, image_HWC: np.ndarray) -> Tensor:
        side = self.preprocessing.resolution
        image = Image.fromarray(image_HWC).resize((side, side), Image.Resampling.BICUBIC)
        pixels_HWC = np.asarray(image, np.float32) / 255
        mean_C, std_C = (np.asarray(part, np.float32) for part in (self.preprocessing.mean, self.preprocessing.std))
        return torch.from_numpy((pixels_HWC - mean_C) / std_C).permute(2, 0, 1)

    def _encode(self, pixels_BCHW: Tensor) -> Tensor:
        if hasattr(self.model, "get_image_features"):  # CLIP, SigLIP
            found = self.model.get_image_features(pixel_values=pixels_BCHW)
            return found if isinstance(found, Tensor) else found.pooler_output
        found = self.model(pixel_values=pixels_BCHW)
        pooled = getattr(found, "pooler_output", None)
        if self.pooled and pooled is not None:
            return pooled.flatten(1)
        last: Tensor = found.last_hidden_state
        return last[:, 0] if last.ndim == 3 else last.mean((2, 3))
