"""The argument of a stage's `run`: config, inputs, output folder and cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dataprep.io import storage
from pipeline.runtime.config import ClusterConfig
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
        joined: dict[int, Shard] = {}
        names = {artifact.manifest.stage for artifact in artifacts}
        for artifact in artifacts:
            stage = artifact.manifest.stage
            for shard in artifact.shards:
                into = joined.setdefault(shard.id, Shard(shard.id, {}))
                into.files.update({f"{stage}.{extension}": path for extension, path in shard.files.items()})
                into.sha256.update({f"{stage}.{extension}": sha256 for extension, sha256 in shard.sha256.items()})
        complete = [s for _, s in sorted(joined.items()) if {name.partition(".")[0] for name in s.files} == names]
        if len(complete) < len(joined):
            self.counters["shards_left_out"] = len(joined) - len(complete)
        return complete

    def map_shards(
        self,
        worker: type[ShardWorker],
        arguments: Mapping[str, Any],
        shards: Sequence[Shard],
        *,
        subfolder: str = "",
        on_gpu: bool = False,
        keep_workers: bool = False,
    ) -> None:
        """Runs a worker over ``shards`` on the cluster, see `pipeline.runtime.shard_map.map_shards`."""
        from pipeline.runtime.shard_map import map_shards

        map_shards(self, worker, arguments, shards, subfolder=subfolder, on_gpu=on_gpu, keep_workers=keep_workers)

    def close_pools(self) -> None:
        """Stops the workers that were kept."""
        for pool in self.pools.values():
            pool.close()
        self.pools.clear()
