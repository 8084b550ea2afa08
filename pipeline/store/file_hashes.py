"""Hashes of source files from outside the run, cached so that a list of a billion rows is read once."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from dataprep.io import storage
from pipeline.store.run import Run

HASHES_FILE = "sources.json"
# Seconds since its last change after which a hash is cached: a file could change twice within one timestamp.
MIN_FILE_AGE = 2.0
UNREADABLE = "unreadable"


class SourceHashes:
    """sha256 by path, cached in RUN/sources.json while a file's size, time and identity stay the same."""

    def __init__(self, run: Run) -> None:
        self.path = run.path(HASHES_FILE)
        self.known: dict[str, Any] = storage.read_json(self.path) if storage.exists(self.path) else {}
        self.changed = False

    def hash_files(self, paths: Iterable[str]) -> dict[str, str]:
        """Returns path -> sha256 in hex, or `UNREADABLE` for a file that cannot be read, such as a dangling link.

        A stage whose file it is says what that means for its rows.
        """
        return {path: self._hash_file(path) for path in paths}

    def _hash_file(self, path: str) -> str:
        try:
            return self._hash_readable(path)
        except OSError:
            return UNREADABLE

    def _hash_readable(self, path: str) -> str:
        identity = storage.identity(path)
        known = self.known.get(path)
        if known is not None and known["identity"] == identity:
            return str(known["sha256"])
        started = time.time()
        sha256, _ = storage.sha256_file(path)
        if storage.identity(path) == identity and started - identity["modified"] > MIN_FILE_AGE:
            self.known[path] = {"identity": identity, "sha256": sha256}
            self.changed = True
        return sha256

    def save(self) -> None:
        """Writes new hashes to the cache."""
        if self.changed:
            storage.write_json(self.path, self.known)
            self.changed = False
