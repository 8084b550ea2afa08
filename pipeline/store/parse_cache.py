"""Keeps on disk what `pipeline.store.fingerprint` reads from sources: parsing them all takes seconds per command.

An entry is keyed by the sha256 of what it was made of, so a stale or damaged file costs time and never a wrong
fingerprint. It lies in the user's cache folder (``$XDG_CACHE_HOME/imagen-ray``, by default ``~/.cache/imagen-ray``);
where that cannot be written, nothing is kept.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any


class ParseCache:
    """JSON values by name, each valid for one key; ``scheme`` identifies the code that makes the values."""

    def __init__(self, scheme: str) -> None:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.path = Path(root) / "imagen-ray" / f"sources-py{sys.version_info.major}.{sys.version_info.minor}.json"
        self.scheme, self.changed = scheme, False
        self.entries: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError, TypeError, KeyError):
            content = json.loads(self.path.read_bytes())
            self.entries = dict(content["entries"]) if content["scheme"] == scheme else {}

    def get(self, name: str, key: str) -> Any | None:
        """Returns the value kept under ``name`` for this ``key``; None if there is none."""
        entry = self.entries.get(name)
        return entry[1] if isinstance(entry, list) and len(entry) == 2 and entry[0] == key else None

    def put(self, name: str, key: str, value: Any) -> None:
        """Keeps a JSON-serialisable value, in place of one for another key."""
        self.entries[name], self.changed = [key, value], True

    def save(self) -> None:
        """Writes the file if something was put, atomically; does nothing where the folder cannot be written."""
        if not self.changed:
            return
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False, suffix=".tmp") as file:
                json.dump({"scheme": self.scheme, "entries": self.entries}, file)
            Path(file.name).replace(self.path)
            self.changed = False
