"""What a metric of the samples is, and what it is computed from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from eval.metrics.config import SweepPoint
from eval.metrics.feature_models import FeatureSpace
from eval.metrics.feature_sets import FeatureKey, FeatureSet, Subsample
from eval.metrics.samples_table import EVALUATE, JudgedSample, SampleKey, read_samples

if TYPE_CHECKING:
    from eval.metrics.audit import AuditConfig
    from eval.metrics.judges.base import JudgeConfig, Verdict
    from eval.metrics.memorisation import CopySearch


@dataclass(frozen=True)
class MeasuredFeatures:
    """Image features of the samples, of the run's validation images and of a reference."""

    spaces: Sequence[FeatureSpace]
    reference: str  # the set that distances are measured to: "validation" or "reference"
    reference_name: str
    size: int  # pixels, of the judged images
    sets: Mapping[FeatureKey, FeatureSet]
    pairs: Mapping[str, Subsample]  # set -> rows (image features, text features, digest of the caption) of own CLIP
    subsample: int


@dataclass(frozen=True)
class SweptSetting:
    """The samples at one setting of a sweep; ``path`` is the table of their features."""

    point: SweepPoint
    stage: str
    size: int
    path: str


@dataclass(frozen=True)
class JudgedSamples:
    """All that a metric may be computed from."""

    samples: Sequence[JudgedSample]  # every candidate of every judged prompt, without images
    paths: Sequence[str] = ()  # the sample tables, which hold the images
    features: MeasuredFeatures | None = None  # None without samples
    sweep: Sequence[SweptSetting] = ()
    judges: Sequence[JudgeConfig] = ()
    verdicts: Mapping[str, Sequence[Verdict]] = field(default_factory=dict)  # by key of the judge; every candidate
    copies: CopySearch | None = None  # None: no training images were searched
    likelihood: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)  # bits, by stage and image
    audit: AuditConfig | None = None
    audited: Sequence[Mapping[str, Any]] = ()  # rows of `ImageAuditor`, one per first candidate

    @cached_property
    def chosen(self) -> list[JudgedSample]:
        """The best candidate of each prompt by CLIP."""
        return [sample for sample in self.samples if sample.chosen]

    @cached_property
    def first(self) -> list[JudgedSample]:
        """Candidate 0 of each prompt: samples without a choice."""
        return [sample for sample in self.samples if sample.index == 0]

    def read_pixels(self, keys: Collection[SampleKey]) -> dict[SampleKey, np.ndarray]:
        """Reads the images of the samples with these keys: uint8 RGB (H, W, 3)."""
        wanted = set(keys)
        rows = read_samples(self.paths, EVALUATE, images=True) if wanted else ()
        return {sample.key: sample.pixels() for sample in rows if sample.key in wanted}


class Metric(ABC):
    """A metric of the samples, registered in `eval.metrics.registry.METRICS` under its name.

    The report lists its values under ``title``, unless it has a section with charts or tables for them.
    """

    title: ClassVar[str]
    description: ClassVar[str]
    has_section: ClassVar[bool] = False

    @abstractmethod
    def compute(self, judged: JudgedSamples) -> dict[str, Any]:
        """Returns JSON values by name; None for what cannot be measured on these samples.

        With ``has_section`` the names are keys of metrics.json. Otherwise they are labels in the report, and each value
        is a number, a text, or {value, low, high}.
        """
