"""Bounded disk cache of row groups from object storage.

Each is an Arrow file, memory-mapped on read. All processes of a host share the folder.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
from filelock import FileLock


class RowGroupCache:
    """Tables by key; evicts the least recently used beyond ``limit`` bytes."""

    def __init__(self, limit: int, folder: str | Path | None = None) -> None:
        default = Path(tempfile.gettempdir()) / f"imagen-ray-{os.getuid()}" / "row-groups"
        self.limit, self.folder = limit, Path(folder or default)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def get(self, key: str, make: Callable[[], pa.Table]) -> pa.Table:
        """Returns the table of ``key``, from the cache or from ``make``, which only one process calls at a time."""
        path = self.folder / f"{blake2b(key.encode(), digest_size=16).hexdigest()}.arrow"
        if (table := _read_table(path)) is not None:
            return table
        with FileLock(path.with_suffix(".lock")):
            return table if (table := _read_table(path)) is not None else self._store(path, make())

    def _store(self, path: Path, table: pa.Table) -> pa.Table:
        temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
        try:
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._evict()
        return table

    def _evict(self) -> None:
        """Removes the oldest files beyond the limit; a mapped file stays readable until it is unmapped."""
        entries = []
        for path in self.folder.glob("*.arrow"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # removed by another process
                continue
            entries.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                break
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
            total -= size


def _read_table(path: Path) -> pa.Table | None:
    """Returns the memory-mapped table at ``path``; None if it is missing or incomplete."""
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        os.utime(path)
    except FileNotFoundError:
        return None
    except pa.ArrowInvalid:  # incomplete, such as after a full disk
        path.unlink(missing_ok=True)
        return None
    return table
