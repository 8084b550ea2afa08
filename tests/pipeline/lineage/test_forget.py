"""Forgetting samples of a run: nothing of them is left in any file, and everything else is unchanged."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.parquet import read_table
from dataprep.io.redact import Forgotten, hash_url
from pipeline.lineage.forget import forget_samples, render_forget_result
from pipeline.lineage.row_balance import find_unaccounted_rows
from pipeline.lineage.trace import trace_sample
from pipeline.store.run import Run, verify_outputs
from tests.helpers.runs import COPY, DEAD, VICTIM, Made, caption, url
from tests.helpers.secret_search import find_secrets, list_secrets, unpack_file


def test_the_search_finds_every_secret_before(finished_run: Made, run: Path) -> None:
    assert find_secrets(run, list_secrets(finished_run)) == {*list_secrets(finished_run), "image in a page"}


@pytest.mark.parametrize("target", [url(VICTIM), "000010002"])
def test_no_secret_of_the_sample_and_its_copies_is_left(finished_run: Made, run: Path, target: str) -> None:
    assert not any(find_unaccounted_rows(Run(str(run))).values())
    result = forget_samples(str(run), [target])
    assert find_secrets(run, list_secrets(finished_run)) == set()
    assert result.samples == 2
    assert not any(find_unaccounted_rows(Run(str(run))).values())
    assert [problem for _, _, problems in verify_outputs(Run(str(run))) for problem in problems] == []
    assert not list(run.rglob("*.tmp"))
    forgotten = json.loads((run / "forgotten.json").read_text())
    assert sorted(forgotten["urls"]) == sorted([hash_url(url(VICTIM)), hash_url(url(COPY))])
    assert forgotten["rows"]["download/downloadone"] == ["000010002", "000020001"]
    assert forgotten["rows"]["download/downloadtwo"] == ["000010000", "000010004"]  # this list starts two rows later
    assert {(item["stage"], item["fingerprint"]) for item in forgotten["trained"]} == {
        *(("encoder", f"encoder{name}") for name in ("one", "two")),
        *(("clip", f"clip{name}") for name in ("one", "two")),
        *(("train.base", f"trainbase{name}") for name in ("one", "two")),
        ("train.base", "unfinished"),
    }
    assert result.stale == ["metrics.json"]
    assert ("train.base/trainbaseone", 0, 4) in result.changes  # three grids and a TensorBoard file
    assert not [*run.glob("stages/train.base/trainbaseone/samples/*")]
    left = [path.name for path in run.glob("stages/train.base/trainbaseone/tensorboard/*")]
    assert left == ["events.out.tfevents.1"]
    assert ("evaluate/evaluateone", 0, 2) in result.changes
    assert [path.name for path in run.glob("stages/evaluate/evaluateone/features/*")] == ["00000.parquet"]


def test_deleted_shards_of_unfinished_stages_lose_their_markers(run: Path) -> None:
    folder = run / "stages" / "annotate" / "unfinished"
    forget_samples(str(run), [url(VICTIM)])
    assert not (folder / "00001.parquet").exists()
    assert not list((folder / ".shards").iterdir())


def test_every_other_row_is_unchanged(finished_run: Made, run: Path) -> None:
    forget_samples(str(run), [url(VICTIM)])
    gone = {"000010002", "000020001"}
    for stage in ("download", "annotate", "score", "select", "pack", "embed"):
        before, after = finished_run.artifacts[stage], Run(str(run)).artifacts()[stage]
        assert after.manifest.counters["redacted"] == 2
        for old, new in zip(before.files(), after.files(), strict=True):
            rows = {row["key"]: row for row in pq.read_table(new).to_pylist()}
            for row in pq.read_table(old).to_pylist():
                if row["key"] not in gone:
                    assert rows.pop(row["key"]) == row
            assert set(rows) <= gone
            assert stage not in ("pack", "embed") or not rows
        changed = {
            one.path for one, two in zip(before.manifest.outputs, after.manifest.outputs, strict=True) if one != two
        }
        assert {name[:5] for name in changed} == {"00001", "00002"}


def test_pages_are_rebuilt_and_old_reports_emptied(run: Path) -> None:
    result = forget_samples(str(run), [url(VICTIM)])
    assert [line.split(":")[0] for line in result.pages] == ["rebuilt", "rebuilt"]
    page = (run / "report.html").read_text()
    assert page == (run / "stages" / "report" / "reportone" / "report.html").read_text()
    assert "taken out on request" in page
    assert "report removed" in (run / "stages" / "report" / "reporttwo" / "report.html").read_text()
    card = (run / "datacard.md").read_text()
    assert "| forgotten on request | 2 |" in card
    facts = json.loads((run / "stages" / "card" / "cardone" / "datacard.json").read_text())
    assert (facts["kept"], facts["forgotten"]) == (9, 2)


def test_a_report_that_cannot_be_rebuilt_stays_empty(finished_run: Made, run: Path) -> None:
    metrics = run / "stages" / "evaluate" / "evaluateone" / "metrics.json"
    metrics.write_text("{torn")
    result = forget_samples(str(run), [url(VICTIM)])
    assert "emptied, since it cannot be rebuilt (" in result.pages[-1]
    assert find_secrets(run, list_secrets(finished_run)) == set()
    record = json.loads((run / "run.json").read_text())
    del record["stages"]["report"]
    (run / "run.json").write_text(json.dumps(record))
    assert "no report yet" in forget_samples(str(run), []).pages[-1]


def test_dry_run_reports_the_same_and_changes_nothing(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    planned = forget_samples(str(run), [url(VICTIM)], dry_run=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    done = forget_samples(str(run), [url(VICTIM)])
    assert (planned.samples, planned.changes, planned.forgotten) == (done.samples, done.changes, done.forgotten)
    assert forget_samples(str(run), [url(VICTIM)]).changes == []  # everything was done before


def test_on_an_object_store(finished_run: Made) -> None:
    root = Path(finished_run.run.root)
    for path in root.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"memory://forget/run/{path.relative_to(root)}", path.read_bytes())
    run = Run("memory://forget/run")
    assert forget_samples(run.root, [url(VICTIM)]).samples == 2
    assert [problem for _, _, problems in verify_outputs(run) for problem in problems] == []
    for name in run.artifacts()["download"].files():
        assert url(VICTIM) not in read_table(name, "download")["url"].to_pylist()
    assert trace_sample(run.root, "000010002")[0]["download"]["error_message"] == "forgotten"


def test_urls_in_no_list_are_recorded(run: Path) -> None:
    result = forget_samples(str(run), ["http://elsewhere.test/a.jpg"])
    assert (result.samples, result.absent, result.changes) == (0, ["http://elsewhere.test/a.jpg"], [])
    assert result.forgotten.trained == []
    assert hash_url("http://elsewhere.test/a.jpg") in Forgotten.read(str(run / "forgotten.json")).urls


def test_a_failed_row_can_be_forgotten(run: Path) -> None:
    result = forget_samples(str(run), [url(DEAD)])
    assert result.samples == 1
    assert result.forgotten.trained == [
        {"stage": "train.base", "fingerprint": "unfinished", "state": "unfinished, may have had them"}
    ]
    assert caption(DEAD).encode() not in b"".join(
        value for path in run.rglob("*") if path.is_file() for value in unpack_file(path)
    )


INVALID_TARGETS = {
    "unknown key": (["000990000"], "nearest is 000020000"),
    "not a key": (["cat"], "no such key or URL"),
    "nothing to complete": ([], "nothing is forgotten in this run yet"),
}


@pytest.mark.parametrize("case", INVALID_TARGETS)
def test_invalid_targets_change_nothing(run: Path, case: str) -> None:
    targets, words = INVALID_TARGETS[case]
    with pytest.raises(UserError, match=words):
        forget_samples(str(run), targets)
    assert not (run / "forgotten.json").exists()


def test_a_run_with_a_driver_is_refused(run: Path) -> None:
    from filelock import FileLock

    with FileLock(run / ".lock"), pytest.raises(UserError, match="another imagen-ray is running there"):
        forget_samples(str(run), [url(VICTIM)])


def test_the_result_for_the_terminal(run: Path) -> None:
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_forget_result(forget_samples(str(run), [url(VICTIM), "http://elsewhere.test/a.jpg"]), False))
    text = console.export_text()
    assert "2 rows are forgotten" in text
    assert "cannot be undone" in text
    assert "stages/train.base/trainbaseone (finished)" in text
    assert "stale" in text and "metrics.json" in text
    assert "recorded for later runs: http://elsewhere.test/a.jpg" in text
