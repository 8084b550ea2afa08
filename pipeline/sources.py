"""Hashes of the files that come from outside: every byte of them counts, but a list of a billion rows is read once."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from dataprep import storage
from pipeline.store import Run

NAME = "sources.json"
# A file changed within this many seconds of its hashing could change again without its time telling: read it again.
SETTLED = 2.0


class SourceHashes:
    """sha256 by path, remembered in RUN/sources.json for as long as size, time and identity of a file are the same."""

    def __init__(self, run: Run) -> None:
        self.path = run.path(NAME)
        self.known: dict[str, Any] = storage.read_json(self.path) if storage.exists(self.path) else {}
        self.changed = False

    def of(self, paths: Iterable[str]) -> dict[str, str]:
        """path -> sha256 in hex."""
        return {path: self._one(path) for path in paths}

    def _one(self, path: str) -> str:
        identity = storage.identity(path)
        known = self.known.get(path)
        if known is not None and known["identity"] == identity:
            return str(known["sha256"])
        started = time.time()
        sha256, _ = storage.sha256_file(path)
        if storage.identity(path) == identity and started - identity["modified"] > SETTLED:
            self.known[path] = {"identity": identity, "sha256": sha256}
            self.changed = True
        return sha256

    def save(self) -> None:
        """Writes what was learned."""
        if self.changed:
            storage.write_json(self.path, self.known)
            self.changed = False
