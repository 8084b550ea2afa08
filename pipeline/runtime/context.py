"""The argument of a stage's `run`: config, inputs, output folder and cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dataprep.io import storage
from pipeline.runtime.config import ClusterConfig
from pipeline.runtime.shard_stream import RunningArtifact, ShardFeed, StageStreams
from pipeline.store.artifact import Artifact, Shard
from pipeline.store.markers import Marker
from pipeline.store.run import Run

if TYPE_CHECKING:
    from pipeline.runtime.actor_pool import ActorPool
    from pipeline.runtime.admission import ClusterShares
    from pipeline.runtime.shard_worker import ShardWorker

C = TypeVar("C")  # the stage's config, see `pipeline.stages.base.StageConfig`
I = TypeVar("I")  # the stage's inputs, see `pipeline.stages.base.StageInputs`


@dataclass
class Context(Generic[C, I]):
    """Everything a stage may read. Its fingerprint covers exactly this."""

    stage: str
    config: C
    inputs: I
    folder: str  # of the outputs
    run: Run
    cluster: ClusterConfig
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)  # the inputs by stage name
    trains: bool = False  # runs a training group: `cluster.stages` then describes its ranks, not its shard workers
    shares: ClusterShares | None = None  # of the cluster, among concurrent stages
    sources: Mapping[str, str] = field(default_factory=dict)  # path of a file from outside the run -> sha256
    counters: dict[str, int] = field(default_factory=dict)
    finished: list[Marker] = field(default_factory=list)
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    pools: dict[str, ActorPool] = field(default_factory=dict)  # workers kept for the next call of `map_shards`
    streams: StageStreams = field(default_factory=StageStreams)
    feeds: list[ShardFeed] = field(default_factory=list)

    def path(self, *parts: str) -> str:
        """Returns a path below the stage's folder."""
        return storage.join(self.folder, *parts)

    def connect(self) -> None:
        """Connects to Ray unless already connected."""
        from pipeline.runtime.ray_session import connect_ray

        connect_ray(self.cluster)

    def join_shards(self, *artifacts: Artifact) -> list[Shard]:
        """Returns the shards of several inputs joined by id; files are named ``<stage>.<extension>``.

        Shards that an input lacks (quarantined there) are skipped and counted.
        """
        feed = ShardFeed(artifact.manifest.stage for artifact in artifacts)
        for artifact in artifacts:
            feed.add(artifact.manifest.stage, artifact.shards)
        self.count_left_out(feed)
        return feed.take()

    def feed_shards(self, *artifacts: Artifact) -> ShardFeed:
        """Returns what `join_shards` returns, but for `map_shards` alone and also of inputs that are still running.

        Such inputs are those that the stage's `StageType.streams` names.
        """
        streams = self.streams.inputs
        running = [streams[one.manifest.stage] for one in artifacts if isinstance(one, RunningArtifact)]
        feed = ShardFeed((one.manifest.stage for one in artifacts), [stream.open_reader() for stream in running])
        self.feeds.append(feed)
        for artifact in artifacts:
            if not isinstance(artifact, RunningArtifact):
                feed.add(artifact.manifest.stage, artifact.shards)
        return feed

    def count_left_out(self, feed: ShardFeed) -> None:
        """Counts the shards of a feed that has ended which an input lacks."""
        if feed.partial:
            self.counters["shards_left_out"] = len(feed.partial)

    def offer_shard(self, shard: Shard) -> None:
        """Hands a shard whose files are published and final to the stages that read this one while it runs."""
        if self.streams.output is not None:
            self.streams.output.offer(shard)

    def map_shards(
        self,
        worker: type[ShardWorker],
        arguments: Mapping[str, Any],
        shards: Sequence[Shard] | ShardFeed,
        *,
        subfolder: str = "",
        on_gpu: bool = False,
        keep_workers: bool = False,
        is_final: Callable[[Marker], bool] = lambda marker: True,
    ) -> None:
        """Runs a worker over ``shards`` on the cluster, see `pipeline.runtime.shard_map.map_shards`."""
        from pipeline.runtime.shard_map import map_shards

        map_shards(
            *(self, worker, arguments, shards),
            subfolder=subfolder,
            on_gpu=on_gpu,
            keep_workers=keep_workers,
            is_final=is_final,
        )

    def close_feeds(self) -> None:
        """Ends the reading of inputs that are still running."""
        for feed in self.feeds:
            feed.close()

    def close_pools(self) -> None:
        """Stops the workers that were kept."""
        for pool in self.pools.values():
            pool.close()
        self.pools.clear()
