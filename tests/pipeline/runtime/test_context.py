"""Joining the shards of a stage's inputs."""

from __future__ import annotations

from pathlib import Path

from pipeline.store.artifact import Artifact, Manifest
from pipeline.store.markers import Output
from tests.helpers.contexts import make_context


def make_artifact(stage: str, shards: tuple[int, ...]) -> Artifact:
    outputs = [Output(f"{shard:05d}.parquet", 1, f"{stage} {shard}", 1) for shard in shards]
    return Artifact(f"/{stage}", Manifest(stage, "f", {}, {}, outputs, {}, 1.0, {}))


def test_shards_are_joined_by_id_and_incomplete_ones_skipped_and_counted(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, "select")
    joined = ctx.join_shards(make_artifact("download", (0, 1, 2)), make_artifact("annotate", (0, 2)))
    assert [shard.id for shard in joined] == [0, 2]
    assert joined[1].files == {
        "download.parquet": "/download/00002.parquet",
        "annotate.parquet": "/annotate/00002.parquet",
    }
    assert joined[1].sha256 == {"download.parquet": "download 2", "annotate.parquet": "annotate 2"}
    assert ctx.counters == {"shards_left_out": 1}
