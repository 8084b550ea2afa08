"""Hands the committed shards of a running stage to the stages that read them shard by shard.

The stage that writes has a `ShardStream`, each stage that reads it a `StreamReader`, and `ShardFeed` joins the shards
of several inputs, of which some may be finished. Each is used by the threads of its stages in one driver.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pipeline.runtime.errors import InputFailedError
from pipeline.store.artifact import Artifact, Manifest, Shard


class ShardStream:
    """The shards that a running stage has committed, in that order."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.shards: list[Shard] = []
        self.offered: dict[int, Shard] = {}
        self.expected = 0  # shards that the stage will have, as far as it knows
        self.readers: list[StreamReader] = []
        self.closed = self.failed = False
        self.lock = threading.Lock()

    def offer(self, shard: Shard) -> None:
        """Hands over a shard whose files are published and will not change any more."""
        with self.lock:
            assert shard.id not in self.offered, f"{self.stage}: shard {shard.id} is handed over twice"
            self.offered[shard.id] = shard
            self.shards.append(shard)

    def close(self, artifact: Artifact) -> None:
        """Hands over the rest of the finished stage. Raises RuntimeError if a shard is not as it was handed over."""
        final = {shard.id: shard for shard in artifact.shards}
        for number, shard in self.offered.items():
            if final.get(number) != shard:
                raise RuntimeError(f"stage {self.stage}: shard {number} changed after the next stages had read it")
        for number, shard in final.items():
            if number not in self.offered:
                self.offer(shard)
        self.closed = True

    def fail(self) -> None:
        """Says that no further shard will come, and that the stage has no artifact."""
        self.failed = self.closed = True

    def open_reader(self) -> StreamReader:
        """Returns a reader of all shards, from the first on; the stage waits for it (`lag`) until it is closed."""
        reader = StreamReader(self)
        with self.lock:
            self.readers.append(reader)
        return reader

    def lag(self) -> int:
        """Returns how many shards wait to be started by the slowest reader."""
        with self.lock:
            return max((reader.count_waiting() for reader in self.readers if not reader.closed), default=0)


class StreamReader:
    """A stage's place in a stream."""

    def __init__(self, stream: ShardStream) -> None:
        self.stream = stream
        self.taken = 0
        self.waiting = 0  # shards that were taken and not started yet
        self.closed = False

    def take(self) -> list[Shard]:
        """Returns the shards that have come since the last call."""
        new = self.stream.shards[self.taken :]
        self.taken += len(new)
        return new

    def count_waiting(self) -> int:
        """Returns how many shards of the stream the stage has not started."""
        return len(self.stream.shards) - self.taken + self.waiting


class ShardFeed:
    """Shards of several inputs joined by id, each as soon as all inputs have committed it.

    Args:
        stages: the inputs' names. Files of a joined shard are named ``<stage>.<extension>``.
        readers: of the inputs that are still running. The others are added whole by `add`.
    """

    def __init__(self, stages: Iterable[str], readers: Sequence[StreamReader] = ()) -> None:
        self.stages, self.readers = frozenset(stages), readers
        self.partial: dict[int, Shard] = {}
        self.complete: dict[int, Shard] = {}
        self.ready: list[Shard] = []  # complete and not taken

    @classmethod
    def from_list(cls, shards: Sequence[Shard]) -> ShardFeed:
        """Returns a feed of shards that are all there."""
        feed = cls(name.partition(".")[0] for shard in shards for name in shard.files)
        feed.ready = list(shards)
        feed.complete = {shard.id: shard for shard in shards}
        return feed

    def add(self, stage: str, shards: Iterable[Shard]) -> None:
        """Adds shards of an input."""
        for shard in shards:
            into = self.partial.setdefault(shard.id, Shard(shard.id, {}))
            into.files.update({f"{stage}.{extension}": path for extension, path in shard.files.items()})
            into.sha256.update({f"{stage}.{extension}": sha256 for extension, sha256 in shard.sha256.items()})
            if {name.partition(".")[0] for name in into.files} == self.stages:
                self.complete[into.id] = self.partial.pop(into.id)
                self.ready.append(into)

    def take(self) -> list[Shard]:
        """Returns the shards that were completed since the last call, by id."""
        for reader in self.readers:
            self.add(reader.stream.stage, reader.take())
        new, self.ready = sorted(self.ready, key=lambda shard: shard.id), []
        return new

    @property
    def readers_ended(self) -> bool:
        """Whether no shard will come that the next call of `take` does not return."""
        return all(reader.stream.closed for reader in self.readers)

    @property
    def total(self) -> int:
        """How many shards there will be, as far as the inputs know."""
        known = len(self.complete) + len(self.partial)
        return max([known, *(reader.stream.expected for reader in self.readers if not reader.stream.closed)])

    def list_complete(self) -> list[Shard]:
        """Returns the shards that were completed so far, by id."""
        return [shard for _, shard in sorted(self.complete.items())]

    def set_waiting(self, count: int) -> None:
        """Says how many shards were taken and are not started yet."""
        for reader in self.readers:
            reader.waiting = count

    def check_inputs(self) -> None:
        """Raises InputFailedError if an input failed, so that shards are missing."""
        for reader in self.readers:
            if reader.stream.failed:
                raise InputFailedError(f"its input {reader.stream.stage} failed")

    def close(self) -> None:
        """Ends the reading: no running input waits for this stage any more."""
        for reader in self.readers:
            reader.closed = True


@dataclass(frozen=True)
class StageStreams:
    """The streams of one stage: those of inputs that are still running, and its own if other stages may read it."""

    inputs: Mapping[str, ShardStream] = field(default_factory=dict)
    output: ShardStream | None = None

    @property
    def active(self) -> bool:
        """Whether the stage runs beside stages that it reads or that read it."""
        return bool(self.inputs or self.output)


class RunningArtifact(Artifact):
    """Stands for the artifact of an input that is still running: only `Context.feed_shards` can read it."""

    def __init__(self, stage: str, fingerprint: str) -> None:
        super().__init__("", Manifest(stage, fingerprint, {}, {}, [], {}, 0.0, {}))

    @cached_property
    def shards(self) -> list[Shard]:
        """Raises RuntimeError: not all shards are there."""
        raise RuntimeError(f"stage {self.manifest.stage} is still running; read it with feed_shards")

    @cached_property
    def content(self) -> str:
        """Raises RuntimeError: not all files are there."""
        raise RuntimeError(f"stage {self.manifest.stage} is still running; it has no content yet")
