"""HPS v2 and v2.1: cosine of image and prompt by a CLIP tuned on people's choices (Wu et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.metrics.judges.base import JudgeImages
from eval.metrics.judges.preference import SCORE, ScalarJudge, check_file

if TYPE_CHECKING:
    import numpy as np

    from eval.clip.scorer import ClipScorer
    from eval.metrics.judges.config import JudgeConfig

ARCHITECTURE = "ViT-H-14"  # of the published weights


class HpsJudge(ScalarJudge):
    """Human preference score by open_clip's layout of the weights."""

    title = "HPS v2"
    description = "Cosine of image and prompt by a CLIP tuned on people's choices; about 0.2 to 0.3."
    needs = "the file of its weights, such as HPS_v2.1_compressed.pt"

    def check(self, config: JudgeConfig) -> list[str]:
        """Returns the weights file."""
        return check_file(config, self.needs)

    def load(self, config: JudgeConfig, own: ClipScorer, device: str) -> JudgeImages:
        """Loads the CLIP by open_clip."""
        from eval.clip.scorer import ClipScorer

        spec = {"model": config.architecture or ARCHITECTURE, "pretrained": config.model}
        scorer = ClipScorer.load(spec, device)

        def score(images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[Mapping[str, float]]:
            return [{SCORE: float(value)} for value in scorer.similarity(images, prompts)]

        return score

    def describe(self, config: JudgeConfig) -> dict[str, Any]:
        """Returns the architecture and its input size."""
        from dataprep.io.model_imports import import_open_clip

        name = config.architecture or ARCHITECTURE
        found = import_open_clip().get_model_config(name) or {}
        return {"model": f"open_clip's {name}", "resolution": found.get("vision_cfg", {}).get("image_size")}
