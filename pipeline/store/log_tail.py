"""The end of a JSON-lines log that may be long, still growing, or cut off by a kill."""

from __future__ import annotations

import json
from typing import Any

from dataprep.io import storage
from dataprep.io.plain_text import split_lines

TAIL_BYTES = 1 << 16  # enough to hold the last row


def read_last_row(path: str) -> dict[str, Any] | None:
    """Returns the last complete row of the log at ``path``; None if there is none yet."""
    if not storage.exists(path):
        return None
    system, name = storage.filesystem(path)
    for line in reversed(split_lines(system.cat_file(name, start=-TAIL_BYTES).decode(errors="replace"))):
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):  # cut off by a kill
            continue
    return None
