"""Sources as one stream of rows."""

from __future__ import annotations

from pathlib import Path

from dataprep.io.parquet import read_table
from dataprep.listing.config import ListingConfig
from dataprep.listing.sources import find_source_files
from dataprep.listing.writer import write_listing


def test_scenes_need_no_files(tmp_path: Path) -> None:
    config = ListingConfig.model_validate({"scenes": {"count": 7}, "rows_per_shard": 5})
    assert find_source_files(config) == []
    assert write_listing(config, 1, tmp_path) == {"records": 7, "rows": 7, "shards": 2, "usable": 7}
    assert "truth" in read_table(tmp_path / "00000.parquet", "listing").column_names
