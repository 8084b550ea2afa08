"""Every row of a run is accounted for: a sum that is wrong is named, quarantined shards are a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dataprep.io import storage
from dataprep.io.parquet import write_table
from pipeline.lineage.row_balance import find_unaccounted_rows
from pipeline.stages.graph import STAGES
from pipeline.store.artifact import Manifest, ShardRecord
from pipeline.store.markers import Output
from pipeline.store.run import Run

Counts = dict[str, int]


class CountedRun:
    """A run of manifests alone: two shards of 5 rows, of which 4 each were downloaded and 3 each kept."""

    def __init__(self, root: Path) -> None:
        self.run, self.manifests = Run(str(root)), dict[str, Manifest]()
        each = {"rows": 5, "ok": 4, "scored": 4, "without_image": 1}
        self.add("listing", {}, {"rows": 10, "usable": 8, "reason_incomplete": 2}, rows=5)
        self.add("download", {"rows": 5, "success": 4, "failed_to_download": 1}, inputs=("listing",))
        self.add("annotate", {name: each[name] for name in ("rows", "ok", "without_image")}, inputs=("download",))
        self.add("score", {name: each[name] for name in ("rows", "scored", "without_image")}, inputs=("download",))
        select = {"rows": 10, "kept": 6, "dropped": 4, "dropped_downloaded": 2, "dropped_min_side": 2}
        self.add("select", {}, select, rows=5, inputs=("download", "annotate", "score"))
        self.add("pack", {"rows": 3, "train": 2, "validation": 1}, inputs=("download", "select"))
        self.add("embed", {"rows": 3, "captions": 6}, rows=6, inputs=("pack",))
        self.add("clip", {}, {"pairs": 8}, inputs=("download",), shards=0)

    def add(
        self, stage: str, each: Counts, counters: Counts | None = None, rows: int = 0, inputs: Any = (), shards: int = 2
    ) -> None:
        outputs = [Output(f"{shard:05d}.parquet", 1, "s", rows or each["rows"]) for shard in range(shards)]
        records = [
            ShardRecord(shard, "w", {}, [f"{shard:05d}.parquet"], each) for shard in range(shards if each else 0)
        ]
        total = counters if counters is not None else {name: shards * count for name, count in each.items()}
        known = {name: f"{name}-1" for name in inputs}
        self.manifests[stage] = Manifest(stage, f"{stage}-1", known, {}, outputs, total, 1.0, {}, shards=records)

    def change(self, stage: str, **changes: Any) -> None:
        self.manifests[stage] = replace(self.manifests[stage], **changes)

    def check(self) -> dict[str, list[str]]:
        """Returns the stages with problems."""
        for manifest in self.manifests.values():
            self.run.commit(manifest)
        stages = {name: {"fingerprint": f"{name}-1"} for name in self.manifests}
        storage.write_json(self.run.path("run.json"), {"stages": stages})
        return {stage: problems for stage, problems in find_unaccounted_rows(self.run).items() if problems}


@pytest.fixture
def made(tmp_path: Path) -> CountedRun:
    return CountedRun(tmp_path)


def test_a_run_whose_rows_add_up(made: CountedRun) -> None:
    assert made.check() == {}


@pytest.mark.parametrize("stage", ["listing", "download", "annotate", "score", "select", "pack", "embed", "clip"])
def test_a_row_that_is_lost_is_found_in_every_stage(made: CountedRun, stage: str) -> None:
    manifest = made.manifests[stage]
    if manifest.outputs:
        lost = replace(manifest.outputs[1], rows=(manifest.outputs[1].rows or 0) - 1)
        made.change(stage, outputs=[manifest.outputs[0], lost])
    else:
        made.change(stage, counters={"pairs": 7})
    assert list(made.check()) == [stage]


def test_wrong_sums_are_named(made: CountedRun) -> None:
    select = made.manifests["select"].counters
    made.change("select", counters=select | {"kept": 5})
    assert made.check() == {
        "select": ["rows=10, but kept=5 + dropped_downloaded=2 + dropped_min_side=2 make 9"],
        "pack": ["rows=6, but select has kept=5"],
    }
    made.change("select", counters=select)
    made.add("embed", {"rows": 2, "captions": 4}, rows=4, inputs=("pack",))
    assert made.check() == {"embed": ["rows=4, but pack has rows=6"]}


def test_passes_count_their_rows_once(made: CountedRun) -> None:
    first = made.manifests["download"]
    again = ShardRecord(
        1, "w", {}, ["pass-001/00001.parquet"], {"rows": 5, "success": 4, "failed_to_resize": 1}, "pass-001"
    )
    made.change(
        "download",
        outputs=[*first.outputs, Output("pass-001/00001.parquet", 1, "s", 5)],
        shards=[*first.shards, again],
        counters={"rows": 15, "success": 12, "failed_to_download": 2, "failed_to_resize": 1},
    )
    assert made.check() == {}


def test_rows_of_quarantined_shards_are_a_reason(made: CountedRun) -> None:
    """Shard 1 was not scored, so select, pack and embed go without it; clip's pairs of it could not be packed."""
    for stage in ("score", "pack", "embed"):
        manifest = made.manifests[stage]
        half = {name: count // 2 for name, count in manifest.counters.items()}
        made.change(stage, outputs=manifest.outputs[:1], shards=manifest.shards[:1], counters=half)
    quarantined = [{"shard": 1, "reason": "torn"}]
    made.change("score", quarantined=quarantined)
    made.change("clip", quarantined=quarantined, counters={"pairs": 4})
    select = made.manifests["select"]
    made.change("select", outputs=select.outputs[:1], counters={"rows": 5, "kept": 3, "dropped_min_side": 2})
    assert made.check() == {}
    made.change("clip", counters={"pairs": 3})
    assert made.check() == {"clip": ["pairs=3, but download has success=8, 4 of them in 1 shard left out"]}


def test_kept_rows_of_a_quarantined_shard_are_read_from_the_selection(made: CountedRun) -> None:
    for stage in ("pack", "embed"):
        manifest = made.manifests[stage]
        half = {name: count // 2 for name, count in manifest.counters.items()}
        made.change(stage, outputs=manifest.outputs[:1], shards=manifest.shards[:1], counters=half)
    folder = Path(made.run.stage_folder("select", "select-1"))
    folder.mkdir(parents=True)
    write_table(
        pa.table({"key": list("abcde"), "keep": [True] * 3 + [False] * 2}), folder / "00001.parquet", "selection"
    )
    assert made.check() == {}


def test_every_stage_with_rows_says_how_they_add_up() -> None:
    without = {name for name, kind in STAGES.items() if kind.balance is None}
    trained = {"prior", "text_tuning", "train", "train_distillation", "train_refinement", "train_vq"}
    assert without == {"encoder", "card", "subject", "schedule", "evaluate", "report"} | trained
