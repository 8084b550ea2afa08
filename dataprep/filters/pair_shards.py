"""The row-aligned files of a shard that a selection reads, and groups of shards that a task works through."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dataprep.io.keys import SAMPLE_DIGITS

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_ROWS = 10**SAMPLE_DIGITS  # a row's position is its shard's number times this, plus its row: its key as a number
GROUP_ROWS = 1 << 17  # of a task, at least
MAX_GROUPS = 4096


@dataclass(frozen=True)
class PairShard:
    """The row-aligned files of one shard; ``downloads`` has the columns that came with the list."""

    id: int
    rows: int
    annotations: str
    scores: str | None = None
    downloads: str | None = None

    def list_columns(self) -> set[str]:
        """Returns all columns of the files."""
        from dataprep.io.parquet import read_schema

        files = ((self.annotations, "annotations"), (self.downloads, "download"), (self.scores, "scores"))
        return {name for path, kind in files if path is not None for name in read_schema(path, kind).names}

    def measure_column(self, name: str) -> int:
        """Returns the bytes of a value of a column of fixed width that ``scores`` has."""
        from dataprep.io.parquet import read_schema

        assert self.scores is not None
        return int(read_schema(self.scores, "scores").field(name).type.byte_width)

    def list_files(self, columns: Collection[str]) -> dict[str, str]:
        """Returns the files that `read_columns` may need, by name for `open_shards`."""
        from dataprep.io.schemas import ANNOTATIONS

        wanted = {"annotations": self.annotations}
        if not set(columns) <= {*ANNOTATIONS.names}:
            wanted |= {name: path for name in ("scores", "downloads") if (path := getattr(self, name)) is not None}
        return {f"{self.id}.{self.rows}.{name}": path for name, path in wanted.items()}

    def read_columns(self, columns: Sequence[str]) -> pa.Table:
        """Reads ``columns`` from the first of annotations, scores and list that has each; a missing one is null.

        Raises ValueError if the files do not have the same rows.
        """
        import pyarrow as pa

        from dataprep.io.parquet import read_schema, read_table

        measured = set(read_schema(self.annotations, "annotations").names)  # more with `annotate.faces` and `text`
        own = [name for name in columns if name in measured]
        missing = [name for name in columns if name not in own]
        rows = read_table(self.annotations, "annotations", list(dict.fromkeys(["key", *own])))
        for path, kind in ((self.scores, "scores"), (self.downloads, "download")):
            if path is None or not missing:
                continue
            present = [name for name in missing if name in read_schema(path, kind).names]
            if present:
                table = read_table(path, kind, ["key", *present])
                if not table["key"].combine_chunks().equals(rows["key"].combine_chunks()):
                    raise ValueError(f"{path}: not the rows of {self.annotations}; make the {kind} of this shard again")
                for name in present:
                    rows = rows.append_column(table.schema.field(name), table[name])
                missing = [name for name in missing if name not in present]
        for name in missing:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, pa.float64()))
        return rows.select(columns)


def open_shards(files: Mapping[str, str]) -> Iterator[PairShard]:
    """Yields the shards whose files `PairShard.list_files` named, in order."""
    found: dict[tuple[int, int], dict[str, str]] = {}
    for name, path in files.items():
        number, rows, field = name.split(".")
        found.setdefault((int(number), int(rows)), {})[field] = path
    for (shard, count), paths in sorted(found.items()):
        yield PairShard(shard, count, **paths)


@dataclass(frozen=True)
class Groups:
    """Which shards each task works through: consecutive ones, by number from ``starts[i]`` to ``ends[i]`` - 1."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def find(self, position_N: np.ndarray) -> np.ndarray:
        """Returns the group of each row, by its position."""
        return np.searchsorted(np.array(self.starts), position_N // SHARD_ROWS, side="right") - 1


def group_shards(shards: Sequence[PairShard]) -> list[list[PairShard]]:
    """Returns the shards in groups of about `GROUP_ROWS` rows, or of more rows where that would be too many groups."""
    least = max(GROUP_ROWS, -(-sum(shard.rows for shard in shards) // MAX_GROUPS))
    groups: list[list[PairShard]] = [[]]
    rows = 0
    for shard in shards:
        if groups[-1] and rows + shard.rows > least:
            groups.append([])
            rows = 0
        groups[-1].append(shard)
        rows += shard.rows
    return groups
