"""Lists of URLs as files, and their rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataprep.listing.config import ListingConfig
from dataprep.listing.sources import list_rows

ROWS = [(f"http://a.test/{index}.jpg", f"caption {index}") for index in range(5)]


def table_config(path: Path, **fields: Any) -> ListingConfig:
    return ListingConfig(source="table", path=str(path), **fields)


def list_pairs(config: ListingConfig) -> list[tuple[str, str]]:
    tables = list(list_rows(config, 0))
    return [(row["url"], row["caption"]) for part in tables for row in part.to_pylist()]


def write_csv(
    path: Path,
    header: tuple[str, ...] | None = ("url", "caption"),
    rows: Sequence[tuple[str, ...]] = ROWS,
    delimiter: str = ",",
) -> Path:
    lines = [delimiter.join(header)] if header else []
    path.write_text("\n".join([*lines, *(delimiter.join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path
