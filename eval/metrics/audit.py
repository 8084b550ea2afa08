"""The audit of a data card, of samples: whom prompts name, and what detectors, heads and labels see in the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dataprep.card.audit import AuditCounts, build_audit
from dataprep.images.faces import FacesConfig, load_detector
from dataprep.images.text_area import TextConfig, load_text_detector
from eval.clip.config import ScoreConfig
from eval.metrics.base import JudgedSamples, Metric

if TYPE_CHECKING:
    from eval.clip.scorer import ClipScorer


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What is looked for in samples: what was looked for in the training images."""

    faces: FacesConfig | None = None
    text: TextConfig | None = None
    score: ScoreConfig = field(default_factory=ScoreConfig)

    @property
    def needs_clip(self) -> bool:
        """Whether something is looked for in the features of a CLIP."""
        return bool(self.score.heads or self.score.labels)

    @property
    def looks(self) -> bool:
        """Whether anything is looked for in images."""
        return self.needs_clip or self.faces is not None or self.text is not None


class ImageAuditor:
    """Measures images as the stages `annotate` and `score` do."""

    def __init__(self, config: AuditConfig, scorer: ClipScorer | None) -> None:
        from eval.clip.score_shard import load_heads

        self.faces = load_detector(config.faces) if config.faces else None
        self.text = load_text_detector(config.text) if config.text else None
        self.scorer = scorer
        self.heads = load_heads(config.score, scorer) if config.needs_clip and scorer is not None else []

    def measure(self, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Returns a row per image, uint8 RGB, whose names are those of the columns of annotations and scores."""
        rows: list[dict[str, Any]] = [{} for _ in images]
        if self.heads and self.scorer is not None and rows:
            features_ND = self.scorer.image_features(images)
            for head in self.heads:
                for row, value in zip(rows, head(features_ND).tolist(), strict=True):
                    row[head.name] = value
        for row, image in zip(rows, images, strict=True):
            row |= {"faces": len(self.faces.detect(image))} if self.faces else {}
            row |= {"text_area": self.text.measure(image)} if self.text else {}
        return rows


class Audit(Metric):
    """Whom the prompts name, and with detectors, heads or labels what the first candidate of each shows."""

    title = "Audit"
    description = "Counted as in the data card, so that samples can be compared with what the model was trained on."
    has_section = True

    def compute(self, judged: JudgedSamples) -> dict[str, Any]:
        """Key audit, of the form of `build_audit`; absent without prompts and without rows of `ImageAuditor`."""
        if not judged.first and not judged.audited:
            return {}
        counts = AuditCounts()
        counts.expect_labels(judged.audit.score.labels if judged.audit is not None else {})
        counts.add_captions(sample.prompt for sample in judged.first)
        for row in judged.audited:
            counts.add_measured({name: [value] for name, value in row.items()})
        return {"audit": build_audit(counts, {})}
