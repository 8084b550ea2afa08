"""How sources and captions are mixed at training. Light: loads no torch."""

from __future__ import annotations

from pydantic import Field

from dataprep.io.config import Config


class DataMix(Config):
    """Shares of the training samples; weights are relative to their sum."""

    sources: dict[str, float] = Field(
        default={}, description="source -> weight; empty: rows of all sources alike, each once per epoch"
    )
    captions: dict[str, dict[str, float]] = Field(
        default={}, description="source -> caption -> weight; a source that is not here has equal weights"
    )
