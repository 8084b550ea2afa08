"""Stage `download`: URLs to tar and Parquet shards in img2dataset's layout; every row has a status and a reason."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataprep.download.config import DownloadConfig
from dataprep.io import storage
from dataprep.io.redact import FORGOTTEN_FILE, Forgotten, ForgottenList
from dataprep.synthetic.config import ScenesConfig
from pipeline.runtime.context import Context
from pipeline.runtime.shard_worker import ShardTask
from pipeline.stages.base import (
    Placement,
    RowBalance,
    Rows,
    StageConfig,
    StageInputs,
    StageType,
    always,
    config_key,
)
from pipeline.store.artifact import Artifact, Shard
from pipeline.store.markers import Marker

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class DownloadStageConfig(StageConfig):
    """What the stage sees of the config."""

    source: str = config_key("listing.source")
    scenes: ScenesConfig = config_key("listing.scenes")
    download: DownloadConfig
    seed: int


@dataclass(frozen=True, kw_only=True)
class DownloadInputs(StageInputs):
    """The rows to download."""

    listing: Artifact


class DownloadWorker:
    """Fetches a listing shard; for the embedded corpus each worker serves the corpus to itself over loopback."""

    def __init__(
        self, config: DownloadConfig, scenes: ScenesConfig | None, seed: int, forgotten: ForgottenList
    ) -> None:
        from dataprep.download.hash_lists import HashLists
        from dataprep.download.robots import PolicyMemory

        self.config = config
        self.hash_lists = HashLists.read(config.hash_lists)
        self.hosts: dict[str, tuple[str, int]] = {}
        self.open = ExitStack()
        self.forgotten = Forgotten.read(forgotten.path).images
        self.memory = PolicyMemory()  # kept over shards: two policy requests per site and shard would be most requests
        if scenes is not None:
            from dataprep.synthetic.corpus import HOST
            from dataprep.synthetic.server import serve_scenes

            self.hosts = {HOST: self.open.enter_context(serve_scenes(scenes, seed))}

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one tar and one Parquet file."""
        from dataprep.download.shard import PreviousPass, download_shard

        again = "previous.tar" in task.files
        previous = PreviousPass(task.tar("previous"), task.table("previous")) if again else None
        return download_shard(
            task.table("listing"),
            task.id,
            task.out,
            self.config,
            self.hosts,
            forgotten=self.forgotten,
            previous=previous,
            memory=self.memory,
            hash_lists=self.hash_lists,
        )


def list_sources(config: RunConfig) -> list[str]:
    """Returns the hash lists, whose bytes are part of the fingerprint; raises UserError where one cannot be used."""
    from dataprep.download.hash_lists import HashLists

    HashLists.read(config.download.hash_lists)
    return [item.path for item in config.download.hash_lists]


def run(ctx: Context[DownloadStageConfig, DownloadInputs]) -> None:
    """Downloads every shard, then makes `retry_failed` more passes over the rows that failed for transient reasons."""
    from dataprep.download.shard import count_transient_failures
    from dataprep.io.failure_reasons import TRANSIENT

    config = ctx.config.download
    # Not an argument of the worker: the passes that an earlier run with fewer passes made are taken over.
    lists = [item.model_copy(update={"path": storage.absolute(item.path)}) for item in config.hash_lists]
    once = config.model_copy(update={"retry_failed": 0, "hash_lists": tuple(lists)})
    scenes = ctx.config.scenes if ctx.config.source == "scenes" else None
    arguments: Mapping[str, Any] = {
        "config": once,
        "scenes": scenes,
        "seed": ctx.config.seed,
        "forgotten": ForgottenList(path=ctx.run.path(FORGOTTEN_FILE)),
    }

    def is_final(marker: Marker) -> bool:
        """Whether no later pass writes the shard again."""
        return config.retry_failed == 0 or not any(marker.counters.get(reason) for reason in TRANSIENT)

    feed = ctx.feed_shards(ctx.inputs.listing)
    ctx.map_shards(DownloadWorker, arguments, feed, is_final=is_final)
    shards = feed.list_complete()
    for number in range(1, config.retry_failed + 1):
        latest = {marker.id: marker for marker in ctx.finished}
        again = [_with_previous(ctx, shard, latest[shard.id]) for shard in shards if shard.id in latest]
        again = [shard for shard in again if count_transient_failures(shard.files["previous.parquet"])]
        if not again:
            break
        ctx.map_shards(DownloadWorker, arguments, again, subfolder=f"pass-{number:03d}", is_final=lambda marker: False)


def _with_previous(ctx: Context[DownloadStageConfig, DownloadInputs], shard: Shard, done: Marker) -> Shard:
    """Returns a listing shard together with the files that the pass before wrote for it."""
    files, sha256 = dict(shard.files), dict(shard.sha256)
    for output in done.outputs:
        name = f"previous.{output.path.rpartition('.')[2]}"
        files[name] = ctx.path(*filter(None, [done.subfolder, output.path]))
        sha256[name] = output.sha256
    return Shard(shard.id, files, sha256)


STAGE = StageType(
    name="download",
    run=run,
    config=DownloadStageConfig,
    inputs=DownloadInputs,
    placement=always(Placement.SHARDS),
    streams=("listing",),
    sources=list_sources,
    counter="success",
    rows=Rows.ALIGNED,
    balance=RowBalance(
        outcomes=("success", "failed_to_download", "failed_to_resize"), written="rows", equal={"rows": "listing.rows"}
    ),
)
