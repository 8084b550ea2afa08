"""The config of the listing."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dataprep.listing.config import ListingConfig


def test_config_errors() -> None:
    with pytest.raises(ValidationError, match="set path to the folder"):
        ListingConfig(source="folder")
    with pytest.raises(ValidationError, match="set source to table or folder"):
        ListingConfig(path="list.csv")
    with pytest.raises(ValidationError):
        ListingConfig(rows_per_shard=10_001)
