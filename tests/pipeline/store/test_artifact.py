"""Manifests, shards and content of an artifact."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from dataprep.io import storage
from dataprep.io.keys import sample_key, split_key
from pipeline.store.artifact import MANIFEST, Artifact, Manifest, ShardRecord
from pipeline.store.markers import Marker, Output
from pipeline.store.run import Run


def test_shards_beyond_100_000_are_found() -> None:
    names = ("00000.tar", "00000.parquet", "99999.tar", "100000.tar", "pass-001/1234567.tar", "funnel.json")
    manifest = Manifest("download", "f", {}, {}, [Output(name, 1, "0" * 64) for name in names], {}, 1.0, {})
    assert [shard.id for shard in Artifact("run", manifest).shards] == [0, 99_999, 100_000, 1_234_567]
    assert [split_key(sample_key(shard, 34)) for shard in (0, 99_999, 100_000)] == [
        (0, 34),
        (99_999, 34),
        (100_000, 34),
    ]
    assert sample_key(0, 34) == "000000034" and sample_key(100_000, 34) == "1000000034"


def test_content_includes_the_source_files(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    manifests = [Manifest("encoder", "e", {}, {}, [], {}, 0.0, {}, sources={"/t5/model": sha}) for sha in "ab"]
    assert Artifact("f", manifests[0]).content != Artifact("f", manifests[1]).content
    assert run.commit(manifests[0]).content == Artifact("elsewhere", manifests[0]).content
    assert storage.exists(storage.join(run.stage_folder("encoder", "e"), MANIFEST))


def test_a_shard_record_gives_back_its_marker() -> None:
    outputs = [Output("00003.tar", 5, "a" * 64), Output("00003.parquet", 7, "b" * 64, 2)]
    marker = Marker(3, "w", {"listing.parquet": "c" * 64}, outputs, {"rows": 2}, "pass-001")
    stored = [Output(f"pass-001/{output.path}", output.bytes, output.sha256, output.rows) for output in outputs]
    manifest = Manifest("download", "f", {}, {}, stored, {}, 1.0, {}, shards=[ShardRecord.from_marker(marker)])
    assert manifest.shards[0].outputs == ["pass-001/00003.tar", "pass-001/00003.parquet"]
    assert Manifest.from_json(asdict(manifest)).markers() == [marker]
    assert Manifest("download", "f", {}, {}, stored[:1], {}, 1.0, {}, shards=manifest.shards).markers() == []


def test_replaced_and_deleted_outputs_are_written_to_the_manifest(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    outputs = [Output(name, 1, "0" * 64) for name in ("a", "b", "c")]
    artifact = run.commit(Manifest("listing", "f", {}, {}, outputs, {"rows": 3}, 1.0, {}))
    artifact.replace_outputs({"a": Output("a", 2, "1" * 64)}, gone=["b"], redacted=1)
    manifest = artifact.read_manifest()
    assert [(output.path, output.bytes) for output in manifest.outputs] == [("a", 2), ("c", 1)]
    assert manifest.counters == {"rows": 3, "redacted": 1}
