"""Registry of the heads over CLIP image features, for what computes them (`eval.clip`) and what filters by them."""

from __future__ import annotations

from dataclasses import dataclass

LABEL_PREFIX = "label_"  # of the columns that `score.labels` asks for


@dataclass(frozen=True)
class ProbabilityLimit:
    """The filter ``select.<name>_below`` on a head's probability; without the head on the column ``listed_<name>``."""

    name: str
    description: str


@dataclass(frozen=True)
class ScorerHead:
    """What a head predicts, and the filter that limits it; None: no such filter."""

    predicts: str
    limit: ProbabilityLimit | None = None


# Name of a head, which is also its column in the score table; in the order of the columns.
HEADS: dict[str, ScorerHead] = {
    "aesthetic": ScorerHead("how beautiful the image is (LAION: 1 to 10)"),
    "nsfw": ScorerHead(
        "probability that the image is unsafe for work",
        ProbabilityLimit("unsafe", "keep below this NSFW probability, of a head or the list (LAION: 0.5)"),
    ),
    "watermark": ScorerHead(
        "probability of a watermark",
        ProbabilityLimit("watermark", "keep below this watermark probability (LAION: 0.8, SD: 0.5)"),
    ),
}
