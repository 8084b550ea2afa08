"""PickScore: scaled cosine of image and prompt by a CLIP tuned on people's choices (Kirstain et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.metrics.judges.base import JudgeImages
from eval.metrics.judges.preference import SCORE, ScalarJudge, check_folder, read_model_config, refuse_model

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from eval.clip.scorer import ClipScorer
    from eval.metrics.judges.config import JudgeConfig

BATCH = 16


class PickScoreJudge(ScalarJudge):
    """PickScore by transformers' CLIP layout of the weights."""

    title = "PickScore"
    description = "Scaled cosine of image and prompt by a CLIP tuned on people's choices; about 18 to 24."
    needs = "the folder of its weights, such as PickScore_v1, with the tokenizer and preprocessor_config.json"

    def check(self, config: JudgeConfig) -> list[str]:
        """Returns the files of the folder."""
        return check_folder(config, self.needs)

    def load(self, config: JudgeConfig, own: ClipScorer, device: str) -> JudgeImages:
        """Loads transformers' CLIPModel, its tokenizer and its image processor."""
        import torch
        from PIL import Image
        from torch.nn import functional

        from dataprep.io.model_imports import import_transformers

        transformers = import_transformers()
        try:
            model = transformers.CLIPModel.from_pretrained(config.model, local_files_only=True, dtype=torch.float32)
            tokenizer = transformers.AutoTokenizer.from_pretrained(config.model, local_files_only=True)
            processor = transformers.AutoImageProcessor.from_pretrained(config.model, local_files_only=True)
        except Exception as error:  # transformers raises many types on a folder that it cannot load
            raise refuse_model(config, error, self.needs) from error
        model = model.to(device).eval().requires_grad_(False)
        length = model.config.text_config.max_position_embeddings

        @torch.inference_mode()
        def score(images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[Mapping[str, float]]:
            found: list[Mapping[str, float]] = []
            for start in range(0, len(images), BATCH):
                part = [Image.fromarray(image) for image in images[start : start + BATCH]]
                pixels = processor(images=part, return_tensors="pt").to(device)
                texts = tokenizer(
                    list(prompts[start : start + BATCH]),
                    padding=True,
                    truncation=True,
                    max_length=length,
                    return_tensors="pt",
                ).to(device)
                image_BD = functional.normalize(take_features(model.get_image_features(**pixels)), dim=-1)
                text_BD = functional.normalize(take_features(model.get_text_features(**texts)), dim=-1)
                scores = model.logit_scale.exp() * (image_BD * text_BD).sum(-1)
                found += [{SCORE: float(value)} for value in scores]
            return found

        return score

    def describe(self, config: JudgeConfig) -> dict[str, Any]:
        """Returns the layout and its input size."""
        size = read_model_config(config.model).get("vision_config", {}).get("image_size")
        return {"model": "CLIP of transformers", "resolution": size}


def take_features(found: Any) -> Tensor:
    """Returns the features out of what get_image_features and get_text_features return, which differs by version."""
    features: Tensor = getattr(found, "pooler_output", found)
    return features
