"""Stage `listing`: the source's rows as Parquet shards."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dataprep.io import storage
from dataprep.io.redact import FORGOTTEN_FILE, Forgotten
from dataprep.listing.config import ListingConfig
from pipeline.runtime.context import Context
from pipeline.stages.base import RowBalance, Rows, StageConfig, StageInputs, StageType
from pipeline.stages.subject import FOLDER
from pipeline.store.artifact import Artifact, Shard, describe_file
from pipeline.store.markers import Marker
from pipeline.store.run import Run

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class ListingStageConfig(StageConfig):
    """What the stage sees of the config; weights, licences and captions of the sources are for later stages."""

    listing: ListingConfig
    seed: int

    @classmethod
    def from_run(cls, config: RunConfig, **given: Any) -> Self:
        return super().from_run(config, listing=config.listing.without_training(), **given)


@dataclass(frozen=True, kw_only=True)
class ListingInputs(StageInputs):
    """The folder that stage `subject` makes, if that is the source."""

    subject: Artifact | None


def list_sources(config: RunConfig) -> list[str]:
    """Returns the user's own files and RUN/forgotten.json: their bytes are part of the fingerprint.

    Raises UserError where a file cannot be a source, or where a filter needs a column that no stage will have.
    """
    from dataprep.filters.config import make_set_filters
    from dataprep.filters.source_rules import SourceRules
    from dataprep.io.schemas import ANNOTATIONS, FACES, TEXT
    from dataprep.listing.sources import check_source, find_source_files

    made_here = config.listing.source == "subject"  # its rows are known once it is made
    columns = [] if made_here else check_source(config.listing)
    available = {*ANNOTATIONS.names, "url", "clip_similarity", *columns, *config.score.heads}
    available |= set(FACES.names) if config.annotate.faces else set()
    available |= set(TEXT.names) if config.annotate.text else set()
    available |= {"clip_embedding"} if config.score.embeddings else set()
    own = {name: source.select for name, source in config.listing.sources.items()}
    rules = SourceRules(keys=own, starts=dict.fromkeys(own, 0))
    rules.make_filters(config.select, available, config.clip.min_similarity)
    make_set_filters(config.select, available)
    forgotten = Run(config.run).path(FORGOTTEN_FILE)
    files = [] if made_here else find_source_files(config.listing)
    return files + ([forgotten] if storage.exists(forgotten) else [])


def run(ctx: Context[ListingStageConfig, ListingInputs]) -> None:
    """Writes the listing."""
    from dataprep.listing.writer import write_listing

    config = ctx.config.listing
    if ctx.inputs.subject is not None:
        config = config.model_copy(update={"source": "folder", "path": ctx.inputs.subject.path(FOLDER)})
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:

        def hand_over(path: Path) -> None:
            """Publishes a shard at once if the download runs already."""
            if ctx.streams.output is not None:
                output = describe_file(scratch, path.name)
                storage.publish(path, ctx.path(path.name))
                ctx.offer_shard(Shard.from_marker(ctx.folder, Marker(int(path.stem), "", {}, [output], {})))

        forgotten = Forgotten.read(ctx.run.path(FORGOTTEN_FILE)).urls
        ctx.counters |= write_listing(config, ctx.config.seed, scratch, forgotten, hand_over)
        for name in storage.list_files(scratch):
            storage.publish(Path(scratch) / name, ctx.path(name))


STAGE = StageType(
    name="listing",
    run=run,
    config=ListingStageConfig,
    inputs=ListingInputs,
    optional=lambda config, name: config.subject is not None,
    sources=list_sources,
    rows=Rows.ALIGNED,
    balance=RowBalance(outcomes=("usable", "reason_*"), written="rows"),
)
