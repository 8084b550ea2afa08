"""Redaction of artifacts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.lineage import redact_artifacts
from pipeline.store.artifact import Manifest, ShardRecord
from pipeline.store.markers import Marker, Output
from pipeline.store.run import Run


def test_input_hashes_of_later_passes_are_updated(tmp_path: Path) -> None:
    """The second pass over shard 0 has the same file names, in a subfolder, and reads the first pass's files."""
    run = Run(str(tmp_path))
    listed = Output("00000.parquet", 1, "listing-new", 1)
    run.commit(Manifest("listing", "l", {}, {}, [listed], {}, 1.0, {}))
    first = [Output("00000.parquet", 1, "p0", 1), Output("00000.tar", 1, "t0")]
    second = [Output("00000.parquet", 1, "p1", 1), Output("00000.tar", 1, "t1")]
    inputs = {"listing.parquet": "listing-old"}
    markers = [
        Marker(0, "w", inputs | {"previous.tar": "t0", "previous.parquet": "p0"}, second, {}, "pass-001"),
        Marker(0, "w", inputs, first, {}),
    ]
    inside = [replace(output, path=f"pass-001/{output.path}") for output in second]
    manifest = Manifest(
        "download",
        "d",
        {"listing": "l"},
        {},
        [*first, *inside],
        {},
        1.0,
        {},
        shards=list(map(ShardRecord.from_marker, markers)),
    )
    artifact = run.commit(manifest)
    new = {"00000.tar": Output("00000.tar", 2, "T0"), "pass-001/00000.tar": Output("pass-001/00000.tar", 3, "T1")}
    redact_artifacts._update_input_hashes(run, artifact.replace_outputs(new, redacted=4))
    redacted = run.artifact("download", "d")
    assert redacted is not None
    found = redacted.manifest
    assert {output.path: output.sha256 for output in found.outputs} == {
        "00000.parquet": "p0",
        "00000.tar": "T0",
        "pass-001/00000.parquet": "p1",
        "pass-001/00000.tar": "T1",
    }
    later, earlier = found.markers()
    assert [(output.path, output.sha256, output.bytes) for output in later.outputs] == [
        ("00000.parquet", "p1", 1),
        ("00000.tar", "T1", 3),
    ]
    assert later.sha256 == {"listing.parquet": "listing-new", "previous.tar": "T0", "previous.parquet": "p0"}
    assert earlier.sha256 == {"listing.parquet": "listing-new"}
    assert found.counters == {"redacted": 4}
