"""Completion records of shards, one by one and in batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.io import storage
from pipeline.store import markers
from pipeline.store.markers import MARKERS, Marker, MarkerBatches, Output, read_markers, shard_fingerprint, write_marker


def make_marker(number: int) -> Marker:
    return Marker(number, "w", {"listing.parquet": "a" * 64}, [Output(f"{number:05d}.tar", 1, "b" * 64)], {"rows": 1})


def test_the_fingerprint_covers_worker_number_and_inputs() -> None:
    assert make_marker(3).fingerprint == shard_fingerprint("w", 3, {"listing.parquet": "a" * 64})
    others = [("v", 3, {"listing.parquet": "a" * 64}), ("w", 4, {"listing.parquet": "a" * 64}), ("w", 3, {})]
    assert make_marker(3).fingerprint not in {shard_fingerprint(*other) for other in others}


def test_markers_are_read_from_batches_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markers, "BATCH_SIZE", 2)
    folder, batches = str(tmp_path), MarkerBatches(str(tmp_path), known=())
    written = [make_marker(number) for number in range(3)]
    for marker in written:
        write_marker(folder, marker)
        batches.add(marker)
    assert storage.list_files(storage.join(folder, MARKERS)) == [
        "00000.json",
        "00001.json",
        "00002.json",
        "batch-00000002.json",
    ]
    assert read_markers(folder) == {marker.id: marker for marker in written}
    (tmp_path / MARKERS / "00000.json").write_text("torn")  # in a batch: not read one by one
    assert read_markers(folder) == {marker.id: marker for marker in written}
