"""The prior as an entry of `train.models.backbones.BACKBONES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.models.base import Backbone
from train.models.prior.config import SUPPORTED_CONDITIONS, PriorConfig
from train.models.prior.presets import PRESETS

if TYPE_CHECKING:
    from train.models.prior.prior import EmbeddingPrior


def build_prior(config: PriorConfig) -> EmbeddingPrior:
    """Returns a fresh prior; imports torch on call."""
    from train.models.prior.prior import EmbeddingPrior

    return EmbeddingPrior(config)


PRIOR = Backbone(PriorConfig, PRESETS, build_prior, SUPPORTED_CONDITIONS, zero_at_start="out.weight", task="prior")
