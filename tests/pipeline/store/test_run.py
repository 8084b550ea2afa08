"""Artifacts, events and verification of a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.store.artifact import Manifest, describe_file
from pipeline.store.run import Run, verify_outputs


def commit_stage(run: Run, stage: str, files: dict[str, bytes]) -> None:
    folder = run.stage_folder(stage, "f" * 20)
    for name, data in files.items():
        storage.write_bytes(storage.join(folder, name), data)
    outputs = [describe_file(folder, name) for name in files]
    run.commit(Manifest(stage, "f" * 20, {}, {}, outputs, {"rows": 1}, 1.0, {}))
    record = run.read_record() or {"stages": {}}
    record["stages"][stage] = {"fingerprint": "f" * 20}
    storage.write_json(run.path("run.json"), record)


@pytest.mark.parametrize("root", ["{tmp}/run", "memory://bucket/run"])
def test_a_committed_manifest_is_read_back(tmp_path: Path, root: str) -> None:
    run = Run(root.format(tmp=tmp_path))
    commit_stage(run, "listing", {"00000.tar": b"a", "00001.tar": b"bb"})
    artifact = run.artifacts()["listing"]
    assert Manifest.from_json(asdict(artifact.manifest)) == artifact.manifest
    assert [shard.id for shard in artifact.shards] == [0, 1]
    assert [output.bytes for output in artifact.manifest.outputs] == [1, 2]
    assert artifact.files("tar") == [artifact.path("00000.tar"), artifact.path("00001.tar")]


def test_a_stage_without_manifest_is_not_finished(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    storage.write_bytes(storage.join(run.stage_folder("listing", "f" * 20), "00000.parquet"), b"x")
    assert run.artifact("listing", "f" * 20) is None


def test_verify_reports_changed_and_missing_files(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    commit_stage(run, "listing", {"a.bin": b"one", "b.bin": b"two", "c.bin": b"three"})
    assert [problems for _, _, problems in verify_outputs(run)] == [[]]
    folder = Path(run.stage_folder("listing", "f" * 20))
    (folder / "a.bin").write_bytes(b"One")  # same length
    (folder / "b.bin").unlink()
    (_, files, problems) = next(verify_outputs(run))
    assert files == 3
    assert len(problems) == 2
    assert "a.bin: differs" in problems[0]
    assert "b.bin: missing" in problems[1]


@pytest.mark.parametrize("root", ["{tmp}/run", "memory://events/run"])
def test_events_survive_a_torn_line(tmp_path: Path, root: str) -> None:
    run = Run(root.format(tmp=tmp_path))
    run.event("one", value="图")
    run.event("two")
    path = run.path("events.jsonl")
    storage.write_bytes(path, storage.read_bytes(path) + b'{"event": "thr')
    assert [event["event"] for event in run.events()] == ["one", "two"]
    assert run.events()[0]["value"] == "图"


def test_a_relative_run_folder_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Run("runs/a").root == str(tmp_path / "runs" / "a")
    assert Run("s3://bucket/a/").root == "s3://bucket/a"


def test_a_missing_run_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json is missing"):
        Run(str(tmp_path)).record()
