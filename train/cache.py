"""A bounded folder of row groups on the local disk, for data that comes from object storage.

Each is an Arrow file, mapped into memory when it is read. All processes of a machine share the folder.
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
    """Tables by key; the least recently used go when there are more than ``limit`` bytes of them."""

    def __init__(self, limit: int, folder: str | Path | None = None) -> None:
        default = Path(tempfile.gettempdir()) / f"imagen-ray-{os.getuid()}" / "row-groups"
        self.limit, self.folder = limit, Path(folder or default)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def get(self, key: str, make: Callable[[], pa.Table]) -> pa.Table:
        """The table of ``key``: from the folder, or made and put there, by one of those who ask for it at a time."""
        path = self.folder / f"{blake2b(key.encode(), digest_size=16).hexdigest()}.arrow"
        if (table := _read(path)) is not None:
            return table
        with FileLock(path.with_suffix(".lock")):
            return table if (table := _read(path)) is not None else self._put(path, make())

    def _put(self, path: Path, table: pa.Table) -> pa.Table:
        temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
        try:
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._trim()
        return table

    def _trim(self) -> None:
        """Removes the oldest files beyond the limit; one that is still mapped somewhere lives on until it is not."""
        entries = []
        for path in self.folder.glob("*.arrow"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            entries.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                break
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
            total -= size


def _read(path: Path) -> pa.Table | None:
    """The table at ``path``, mapped; None where there is none, or a part of one."""
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        os.utime(path)
    except FileNotFoundError:
        return None
    except pa.ArrowInvalid:  # a full disk, say, left a part of it
        path.unlink(missing_ok=True)
        return None
    return table
