"""Config of a judge. Light: loads no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dataprep.io.config import Config, NameIn
from eval.metrics.judges.registry import JUDGES


class JudgeConfig(Config):
    """A model that says something of every sample."""

    kind: Annotated[str, NameIn(JUDGES)] = Field(description="what it judges; see docs/evaluation.md")
    model: str = Field(description="its local weights: a folder or a file")
    architecture: str | None = Field(
        None, description="open_clip architecture of a weights file, of kinds that are a CLIP; default: the published"
    )
    protocol: str | None = Field(None, description="prompt file of the benchmark, of kinds that follow one")

    @property
    def key(self) -> str:
        """Name in metrics.json."""
        return self.kind
