"""Stage `card`: what the dataset consists of: the data card, Croissant, and the summary of training content."""

from __future__ import annotations

from dataclasses import dataclass

from dataprep.card.config import CardConfig
from dataprep.io import storage
from dataprep.listing.config import ListingConfig
from pipeline.runtime.context import Context
from pipeline.stages.base import StageConfig, StageInputs, StageType
from pipeline.store.artifact import Artifact


class CardStageConfig(StageConfig):
    """What the stage sees of the config."""

    card: CardConfig
    listing: ListingConfig


@dataclass(frozen=True, kw_only=True)
class CardInputs(StageInputs):
    """Every stage that makes data."""

    listing: Artifact
    download: Artifact
    annotate: Artifact
    score: Artifact
    select: Artifact
    pack: Artifact
    embed: Artifact


def run(ctx: Context[CardStageConfig, CardInputs]) -> None:
    """Writes datacard.md and datacard.json, croissant.json and training_content.md."""
    from pipeline.report.data_card_files import build_data_card

    for name, text in build_data_card(ctx.artifacts, ctx.config.card, ctx.config.listing).items():
        storage.write_bytes(ctx.path(name), text.encode())


STAGE = StageType(
    name="card",
    run=run,
    config=CardStageConfig,
    inputs=CardInputs,
    published=("datacard.md", "croissant.json", "training_content.md"),
)
