"""Config of the training data loader. Light: loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dataprep.io.config import Config

MOST_THREADS = 16  # of a rank that prefetch; each has a batch ahead, in pinned memory and on the device


class LoaderConfig(Config):
    """How training data is read."""

    window_mb: int = Field(
        256, ge=1, description="row groups that are shuffled together; a rank holds its share of two windows"
    )
    cache_mb: int = Field(
        4096, ge=0, description="disk cache of row groups from object storage, shared by the ranks of a host; 0: none"
    )
    on_corrupt: Literal["stop", "skip"] = Field(
        "stop", description="unreadable data: stop, or replace it by other rows of its window and count it"
    )
    verify: bool = Field(True, description="verify page checksums on the first read of a row group")
