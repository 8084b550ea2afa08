"""Where the time of a run goes: spans of the driver and of the workers, as a Chrome trace.

The file opens in Perfetto (ui.perfetto.dev) or chrome://tracing.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataprep.io.errors import UserError

_SPANS: list[dict[str, Any]] = []  # of this process, finished ones; appending is atomic


@contextmanager
def span(name: str, **details: Any) -> Iterator[None]:
    """Records the time of the body under ``name``; costs a microsecond."""
    started = time.time()
    try:
        yield
    finally:
        _SPANS.append(
            {
                "name": name,
                "ph": "X",
                "ts": started * 1e6,
                "dur": (time.time() - started) * 1e6,
                "pid": "driver",
                "tid": threading.current_thread().name,
                "args": details,
            }
        )


@contextmanager
def profiled(path: str | None) -> Iterator[None]:
    """Writes the spans of the body to ``path``, also if it raises; with None does nothing.

    Raises:
        UserError: ``path`` cannot be written; before the body runs.
    """
    if path is not None:
        try:
            Path(path).write_text("[]")
        except OSError as error:
            raise UserError(f"--profile={path}: cannot be written ({error}); choose another file") from error
    try:
        yield
    finally:
        if path is not None:
            write_profile(path)


def write_profile(path: str) -> None:
    """Writes the spans of this driver, and what Ray knows of the calls of its workers, to ``path``."""
    events = list(_SPANS)
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        events += ray.timeline()
    Path(path).write_text(json.dumps(events))
