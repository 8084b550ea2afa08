"""Manifests, artifacts, events and verification."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from dataprep import storage
from dataprep.schema import UserError, sample_key, split_key
from pipeline.config import load_config
from pipeline.executor import Planned, _run_stage
from pipeline.stages import Stage
from pipeline.store import Artifact, Manifest, Marker, Output, Run, describe, verify, write_marker


def make(run: Run, stage: str, files: dict[str, bytes]) -> None:
    folder = run.stage_folder(stage, "f" * 20)
    for name, data in files.items():
        storage.write_bytes(storage.join(folder, name), data)
    outputs = [describe(folder, name) for name in files]
    run.commit(Manifest(stage, "f" * 20, {}, {}, outputs, {"rows": 1}, 1.0, {}))
    record = run.read_record() or {"stages": {}}
    record["stages"][stage] = {"fingerprint": "f" * 20}
    storage.write_json(run.path("run.json"), record)


@pytest.mark.parametrize("root", ["{tmp}/run", "memory://bucket/run"])
def test_a_manifest_comes_back_as_it_was(tmp_path: Path, root: str) -> None:
    run = Run(root.format(tmp=tmp_path))
    make(run, "listing", {"00000.tar": b"a", "00001.tar": b"bb"})
    artifact = run.artifacts()["listing"]
    assert Manifest.from_json(asdict(artifact.manifest)) == artifact.manifest
    older = {key: value for key, value in asdict(artifact.manifest).items() if key not in ("shards", "sources")}
    assert Manifest.from_json(older) == artifact.manifest
    assert [shard.id for shard in artifact.shards] == [0, 1]
    assert [output.bytes for output in artifact.manifest.outputs] == [1, 2]
    assert artifact.files("tar") == [artifact.path("00000.tar"), artifact.path("00001.tar")]


def test_a_stage_without_manifest_is_not_finished(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    storage.write_bytes(storage.join(run.stage_folder("listing", "f" * 20), "00000.parquet"), b"x")
    assert run.artifact("listing", "f" * 20) is None


def test_verify_names_what_differs(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    make(run, "listing", {"a.bin": b"one", "b.bin": b"two", "c.bin": b"three"})
    assert [problems for _, _, problems in verify(run)] == [[]]
    folder = Path(run.stage_folder("listing", "f" * 20))
    (folder / "a.bin").write_bytes(b"One")  # the same length
    (folder / "b.bin").unlink()
    (_, files, problems) = next(verify(run))
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


def test_a_relative_run_folder_means_the_same_to_every_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Run("runs/a").root == str(tmp_path / "runs" / "a")
    assert Run("s3://bucket/a/").root == "s3://bucket/a"


def test_no_run_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json is missing"):
        Run(str(tmp_path)).record()


def test_shards_beyond_a_hundred_thousand_are_shards_too() -> None:
    names = ("00000.tar", "00000.parquet", "99999.tar", "100000.tar", "pass-001/1234567.tar", "funnel.json")
    manifest = Manifest("download", "f", {}, {}, [Output(name, 1, "0" * 64) for name in names], {}, 1.0, {})
    assert [shard.id for shard in Artifact("run", manifest).shards] == [0, 99_999, 100_000, 1_234_567]
    assert [split_key(sample_key(shard, 34)) for shard in (0, 99_999, 100_000)] == [
        (0, 34),
        (99_999, 34),
        (100_000, 34),
    ]
    assert sample_key(0, 34) == "000000034" and sample_key(100_000, 34) == "1000000034"


def test_the_markers_of_a_finished_stage_go_on_an_object_store_too() -> None:
    """Paths there are literal: an empty part in the middle would name nothing."""
    run = Run("memory://bucket/markers/run")
    config, folder = load_config("configs/smoke.yaml", [f"run={run.root}"]), run.stage_folder("listing", "f" * 20)
    parts = [Marker(number, "w", {}, [], {}, subfolder) for number, subfolder in enumerate(("", "pass-001"))]
    for part in parts:
        write_marker(storage.join(folder, part.subfolder) if part.subfolder else folder, part)
    stage = Stage("listing", lambda ctx: ctx.finished.extend(parts), ())
    hashed = {key: {} for key in ("config", "inputs", "versions", "code", "sources")}
    record = {"stages": {"listing": {}}}
    _run_stage(Planned(stage, "f" * 20, hashed, None, ""), {}, None, config=config, run=run, record=record)
    assert storage.list_files(folder) == ["manifest.json"]
