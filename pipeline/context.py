"""What a stage's function is given: its slice of the config, its inputs' artifacts, and ways to do work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dataprep import storage
from dataprep.schema import UserError
from pipeline.config import ClusterConfig
from pipeline.resources import StageResources
from pipeline.reuse import take_over, worker_fingerprint
from pipeline.store import Artifact, Marker, Run, Shard, shard_fingerprint

if TYPE_CHECKING:
    from pipeline.room import Room


class StageError(RuntimeError):
    """A failure at run time: exit 1, with the stage, the shard or step, and the command that resumes."""


@dataclass
class Context:
    """A stage at work. What it does not find here, it does not depend on: that is what makes its fingerprint whole."""

    stage: str
    config: dict[str, Any]  # dotted key -> value, just the keys that the stage list names
    inputs: dict[str, Artifact]
    folder: str  # where the outputs go
    run: Run
    cluster: ClusterConfig
    trains: bool = False  # in a training group: what the config says of resources is then about its ranks
    room: Room | None = None  # shared with the stages that run beside this one
    sources: dict[str, str] = field(default_factory=dict)  # files from outside: path -> sha256
    counters: dict[str, int] = field(default_factory=dict)
    finished: list[Marker] = field(default_factory=list)
    quarantined: list[dict[str, Any]] = field(default_factory=list)

    def path(self, *parts: str) -> str:
        """A path below the stage's own folder."""
        return storage.join(self.folder, *parts)

    def connect(self) -> None:
        """Makes sure that Ray is up; a stage that needs none does not wait for it."""
        from pipeline.cluster import connect

        connect(self.cluster)

    def shards(self, *stages: str) -> list[Shard]:
        """The shards of several inputs joined by id; files are named ``<stage>.<extension>``."""
        joined: dict[int, Shard] = {}
        for stage in stages:
            for shard in self.inputs[stage].shards:
                into = joined.setdefault(shard.id, Shard(shard.id, {}))
                into.files.update({f"{stage}.{extension}": path for extension, path in shard.files.items()})
                into.sha256.update({f"{stage}.{extension}": sha256 for extension, sha256 in shard.sha256.items()})
        whole = [
            shard
            for _, shard in sorted(joined.items())
            if {name.partition(".")[0] for name in shard.files} == set(stages)
        ]
        if len(whole) < len(joined):  # one of the inputs gave up on a shard
            self.counters["shards_left_out"] = len(joined) - len(whole)
        return whole

    def map_shards(
        self,
        worker: type,
        arguments: dict[str, Any],
        shards: Sequence[Shard],
        *,
        subfolder: str = "",
        on_gpu: bool = False,
    ) -> None:
        """Runs a shard worker over ``shards`` in Ray; outputs land in the stage's folder (or a subfolder of it).

        ``on_gpu``: each worker has a GPU to itself where the cluster has any, unless the config says otherwise. Shards
        that an earlier artifact of the stage holds are taken over from there.
        """
        from pipeline.shards import finished, map_shards

        if not shards:
            raise UserError(f"{self.stage}: there is nothing to work on; the stage before it left no shard")
        by_shard = {name.partition(".")[0] for shard in shards for name in shard.files}
        whole = [artifact for stage, artifact in self.inputs.items() if stage not in by_shard]
        fingerprint = worker_fingerprint(worker, arguments, whole, self.sources)
        folder = self.path(subfolder) if subfolder else self.folder
        have = finished(folder, shards, fingerprint)
        wanted = {s.id: shard_fingerprint(fingerprint, s.id, s.sha256) for s in shards if s.id not in have}
        taken = take_over(self.run, self.stage, subfolder, folder, wanted)
        if taken:
            have = finished(folder, shards, fingerprint)
            self.run.event("shards_taken_over", stage=self.stage, shards=taken, of=len(shards))
        if taken < len(wanted):
            self.connect()
        done = map_shards(
            worker,
            arguments,
            shards,
            self.folder,
            label=f"{self.stage} {subfolder}".strip(),
            retries=self.cluster.retries,
            subfolder=subfolder,
            fingerprint=fingerprint,
            on_gpu=on_gpu,
            asked=StageResources() if self.trains else self.cluster.of(self.stage),
            share=lambda need: self.room.workers(self.stage, need) if self.room else None,
            have=have,
        )
        self.finished += done.shards
        for name, count in done.counters.items():
            self.counters[name] = self.counters.get(name, 0) + count
        for item in done.quarantined:
            self.run.event("quarantined", stage=self.stage, **item)
        self.quarantined += done.quarantined
        if len(self.quarantined) > self.cluster.max_quarantined:
            first = self.quarantined[0]
            raise StageError(
                f"{len(self.quarantined)} of {len(shards)} shards failed {self.cluster.retries + 1} times and are "
                f"quarantined; the first is shard {first['shard']}: {first['reason']}. The others are kept. "
                f"To go on without them set cluster.max_quarantined={len(self.quarantined)}"
            )


StageFunction = Callable[[Context], None]
