"""Running a pipeline: planning again after another driver, unreadable stores, and committing a stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.config_loading import load_config
from pipeline.execution import executor
from pipeline.execution.executor import _run_stage, run_pipeline
from pipeline.execution.plan import FingerprintParts, PlannedStage, plan_run
from pipeline.execution.record import RunRecord
from pipeline.runtime import ray_session
from pipeline.runtime.admission import ClusterShares
from pipeline.runtime.config import ClusterConfig
from pipeline.runtime.shard_stream import StageStreams
from pipeline.stages.base import Placement, Stage, StageConfig, StageInputs, StageType
from pipeline.store.markers import Marker, write_marker
from pipeline.store.run import Run
from tests.helpers.paths import ROOT

SMOKE = str(ROOT / "configs" / "smoke.yaml")


def test_a_run_is_planned_again_if_another_driver_ran_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(SMOKE, [f"run={tmp_path}/run"])
    calls: list[Any] = []

    @contextmanager
    def lock_after_another(run: Run) -> Iterator[None]:
        storage.write_json(run.path("run.json"), {"stages": {}})  # written by the other driver
        yield

    def count_plans(*arguments: Any) -> list[Any]:
        calls.append(arguments)
        return plan_run(*arguments)

    monkeypatch.setattr(executor, "lock_run", lock_after_another)
    monkeypatch.setattr(executor, "plan_run", count_plans)
    monkeypatch.setattr(executor, "_run_stages", lambda *_: {})
    monkeypatch.setattr(executor, "_copy_published", lambda *_: None)
    run_pipeline(config, "run")
    assert len(calls) == 2
    monkeypatch.setattr(executor, "lock_run", lambda run: nullcontext())
    run_pipeline(config, "run")
    assert len(calls) == 3


def test_an_unreadable_store_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> bytes:
        raise LookupError("no credentials\nfound")

    monkeypatch.setattr(storage, "read_or_none", fail)
    config = load_config(SMOKE, ["run=memory://bucket/run"])
    with pytest.raises(UserError, match=r"run=.*: cannot be read \(LookupError: no credentials found\); check"):
        run_pipeline(config, "run")


def test_resources_of_unknown_stages_are_refused(tmp_path: Path) -> None:
    where = f"run={tmp_path}/run"
    loaded = load_config(SMOKE, [where, "cluster.stages={train: {num_cpus: 1}, train.sr32: {num_cpus: 2}}"])
    wanted = [loaded.cluster.stage_resources(stage).num_cpus for stage in ("train.base", "train.sr32", "download")]
    assert wanted == [1, 2, None]
    with pytest.raises(UserError, match=r"cluster\.stages: trian: no such stage; the stages are train, listing"):
        run_pipeline(load_config(SMOKE, [where, "cluster.stages.trian.num_cpus=1"]), "run")
    assert not (tmp_path / "run").exists()


def test_a_finished_stage_leaves_no_markers_on_an_object_store() -> None:
    """Object names are literal: one with an empty part in the middle would not match."""
    run = Run("memory://bucket/markers/run")
    config, folder = load_config(SMOKE, [f"run={run.root}"]), run.stage_folder("listing", "f" * 20)
    parts = [Marker(number, "w", {}, [], {}, subfolder) for number, subfolder in enumerate(("", "pass-001"))]
    for part in parts:
        write_marker(storage.join(folder, part.subfolder) if part.subfolder else folder, part)
    kind = StageType(name="listing", run=lambda ctx: ctx.finished.extend(parts), config=StageConfig, inputs=StageInputs)
    stage = Stage("listing", kind, StageConfig(), (), None, Placement.DRIVER)
    hashed = FingerprintParts("listing", {}, {}, {}, {}, {})
    record = RunRecord(run, {"stages": {"listing": {}}})
    shares = ClusterShares(lambda resource: 1.0)
    _run_stage(PlannedStage(stage, "f" * 20, hashed, None, ""), {}, shares, StageStreams(), config, run, record)
    assert storage.list_files(folder) == ["manifest.json"]
    assert [record.subfolder for record in run.artifact("listing", "f" * 20).manifest.shards] == ["", "pass-001"]  # type: ignore[union-attr]


def test_a_failed_early_connection_is_left_to_the_stage_that_needs_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a plain Exception where a node does not start in time; a thread would print its traceback."""
    tried: list[ClusterConfig] = []

    def time_out(cluster: ClusterConfig) -> None:
        tried.append(cluster)
        raise Exception("the current node timed out during startup")

    monkeypatch.setattr(ray_session, "connect_ray", time_out)
    executor._prepare_ray(ClusterConfig())
    assert tried == [ClusterConfig()]
