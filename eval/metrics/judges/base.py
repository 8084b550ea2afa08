"""What a judge is: a model from local weights that says something of every image. Light: loads no numpy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np

    from eval.clip.scorer import ClipScorer
    from eval.metrics.judges.config import JudgeConfig

Values = Mapping[str, float]  # what a judge says of one image, by name
JudgeImages = Callable[["Sequence[np.ndarray]", Sequence[str]], Sequence[Values]]  # images (uint8 RGB HWC), prompts


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one image."""

    prompt: str
    values: Values


class Judge(ABC):
    """A kind of judge, registered in `eval.metrics.judges.registry.JUDGES` under its name. Loads nothing by itself."""

    title: ClassVar[str]
    description: ClassVar[str]
    needs: ClassVar[str]  # what `evaluate.judges` names as its model
    protocol_name: ClassVar[str] = ""  # of a benchmark whose prompt file it reads

    @abstractmethod
    def check(self, config: JudgeConfig) -> list[str]:
        """Returns the local files that its verdicts depend on; raises UserError for one that is missing or unfit."""

    @abstractmethod
    def load(self, config: JudgeConfig, own: ClipScorer, device: str) -> JudgeImages:
        """Loads the model; ``own`` is the CLIP that scores. Raises UserError for weights that cannot be loaded."""

    @abstractmethod
    def summarize(self, config: JudgeConfig, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        """Returns values by label: numbers, or {value, low, high}. Not called without verdicts."""

    @abstractmethod
    def describe(self, config: JudgeConfig) -> dict[str, Any]:
        """Returns ``model`` (a description) and ``resolution`` (of its input in pixels; None: that of the image)."""

    def recognises(self, prompts_file: str) -> bool:
        """Whether a prompt file is that of its protocol."""
        return False
