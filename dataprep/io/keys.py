"""Sample keys: shard number and row number as digits, as in img2dataset's file names."""

from __future__ import annotations

SHARD_DIGITS, SAMPLE_DIGITS = 5, 4  # shard number (more digits from shard 100,000 on), row number within the shard


def sample_key(shard: int, row: int) -> str:
    """Returns the key of a sample: the digits of its shard, then those of its row in the shard."""
    return f"{shard_name(shard)}{row:0{SAMPLE_DIGITS}d}"


def split_key(key: str) -> tuple[int, int]:
    """Returns the shard and the row of a `sample_key`."""
    return int(key[:-SAMPLE_DIGITS]), int(key[-SAMPLE_DIGITS:])


def shard_name(shard: int, extension: str = "") -> str:
    """Returns the file name of a shard, such as ``00012.parquet``; without ``extension`` the digits alone."""
    return f"{shard:0{SHARD_DIGITS}d}" + (f".{extension}" if extension else "")
