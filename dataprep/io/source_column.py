"""The name of a row's source, where a run has several."""

from __future__ import annotations

SOURCE_COLUMN = "listed_source"  # column of listing, download and pack; a run of one source has none
