"""Config of an adapter. Light: loads no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dataprep.io.config import Config, NameIn
from train.models.adapters.registry import ADAPTERS


class AdapterConfig(Config):
    """Small matrices that are trained beside the weights, which stay as they are."""

    kind: Annotated[str, NameIn(ADAPTERS)] = Field("lora", description="kind of adapter")
    rank: int = Field(16, ge=1, description="columns of each pair of matrices: more learn more, and take more memory")
    alpha: float | None = Field(
        None, gt=0, description="the update is scaled by alpha / rank; None: alpha = rank, so by one"
    )
    targets: tuple[str, ...] = Field(
        ("*",),
        strict=False,
        min_length=1,
        description="layers that get one (patterns of names); * is every linear layer and convolution",
    )

    @property
    def scale(self) -> float:
        """The factor of the update."""
        return 1.0 if self.alpha is None else self.alpha / self.rank
