"""The interface of shard workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dataprep.io.keys import shard_name


@dataclass(frozen=True)
class ShardTask:
    """A shard to process: local copies of its input files and an empty local folder for its outputs."""

    id: int
    files: Mapping[str, str]  # "<stage>.<extension>" -> local path
    out: Path

    def table(self, stage: str) -> str:
        """Returns the path of the Parquet file that ``stage`` wrote for this shard."""
        return self.files[f"{stage}.parquet"]

    def tar(self, stage: str) -> str:
        """Returns the path of the tar that ``stage`` wrote for this shard."""
        return self.files[f"{stage}.tar"]

    def output_table(self) -> Path:
        """Returns the path of the Parquet file that the worker writes."""
        return self.out / shard_name(self.id, "parquet")


class ShardWorker(Protocol):
    """Processes one shard per call; the constructor loads what all shards share (a model, a server).

    Reads only its constructor's arguments and the tasks: a shard's fingerprint covers exactly these. A class with an
    attribute ``process_kind`` shares its processes with workers of the same kind alone.
    """

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes the shard's outputs into ``task.out`` and returns counters, which are summed over shards."""
