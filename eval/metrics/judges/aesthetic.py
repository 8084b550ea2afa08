"""LAION's aesthetic predictors: linear layers over the image features of the CLIP that they were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.metrics.judges.base import JudgeImages
from eval.metrics.judges.preference import SCORE, ScalarJudge, check_file

if TYPE_CHECKING:
    import numpy as np

    from eval.clip.scorer import ClipScorer
    from eval.metrics.judges.config import JudgeConfig


class AestheticJudge(ScalarJudge):
    """A head over the features of the CLIP that scores, or of ``architecture`` as NAME:WEIGHTS of open_clip."""

    title = "Aesthetic score"
    description = "How beautiful an image is, by LAION's predictor: 1 to 10."
    needs = "the file of its weights, such as sac+logos+ava1-l14-linearMSE.pth, and the CLIP that it was trained on"

    def check(self, config: JudgeConfig) -> list[str]:
        """Returns the weights file."""
        return check_file(config, self.needs)

    def load(self, config: JudgeConfig, own: ClipScorer, device: str) -> JudgeImages:
        """Loads the head, and the CLIP below it unless it is the one that scores."""
        from eval.clip.config import HeadConfig
        from eval.clip.heads import Head
        from eval.clip.scorer import ClipScorer

        head, scorer = Head.load("aesthetic", HeadConfig(path=config.model)), own
        if config.architecture:
            name, _, weights = config.architecture.partition(":")
            scorer = ClipScorer.load({"model": name, "pretrained": weights or None}, device)

        def score(images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[Mapping[str, float]]:
            return [{SCORE: float(value)} for value in head(scorer.image_features(images))]

        return score

    def describe(self, config: JudgeConfig) -> dict[str, Any]:
        """Returns what the head reads. Its images pass through the CLIP at that model's size."""
        below = f"open_clip's {config.architecture}" if config.architecture else "the scoring CLIP"
        return {"model": f"linear layers over {below}", "resolution": None}
