"""Fan-out over shards on real Ray: commit, resume, retry, dead processes, quarantine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from dataprep.schema import UserError
from pipeline import shards
from pipeline.shards import map_shards
from pipeline.store import Shard, read_markers

pytestmark = pytest.mark.usefixtures("local_ray")
# Ray's workers cannot import a test module: what it defines travels with the call.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Upper:
    """Writes its input in capitals; misbehaves as the shard's text says."""

    def __init__(self, notes: str) -> None:
        self.notes = Path(notes)

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        text = Path(shard.files["in.txt"]).read_text()
        note = self.notes / f"{shard.id}"
        note.write_text(note.read_text() + "x" if note.exists() else "x")
        tries = len(note.read_text())
        if text.startswith("flaky") and tries < 2:
            raise OSError("not yet")
        if text.startswith("dies") and tries < 2:
            os._exit(1)
        if text.startswith("poison"):
            raise ValueError("cannot be read")
        if text.startswith("user"):
            raise UserError("key=value: mend it")
        (out / f"{shard.id:05d}.txt").write_text(text.upper())
        return {"rows": 1, "tries": tries}


def run(tmp_path: Path, texts: list[str], retries: int = 1) -> shards.Done:
    for name in ("in", "notes", "out"):
        (tmp_path / name).mkdir(exist_ok=True)
    work = []
    for index, text in enumerate(texts):
        path = tmp_path / "in" / f"{index}.txt"
        path.write_text(text)
        work.append(Shard(index, {"in.txt": str(path)}))
    arguments = {"notes": str(tmp_path / "notes")}
    return map_shards(Upper, arguments, work, str(tmp_path / "out"), label="upper", retries=retries)


def test_outputs_and_counters_of_all_shards(tmp_path: Path) -> None:
    done = run(tmp_path, ["a", "b", "c"])
    assert [output.path for marker in done.shards for output in marker.outputs] == [
        "00000.txt",
        "00001.txt",
        "00002.txt",
    ]
    assert done.counters == {"rows": 3, "tries": 3}
    assert (tmp_path / "out" / "00001.txt").read_text() == "B"
    assert set(read_markers(str(tmp_path / "out"))) == {0, 1, 2}


def test_a_finished_shard_is_not_worked_on_again(tmp_path: Path) -> None:
    first = run(tmp_path, ["a", "b"])
    (tmp_path / "out" / ".shards" / "00001.json").unlink()
    second = run(tmp_path, ["a", "b"])
    assert [len((tmp_path / "notes" / str(i)).read_text()) for i in (0, 1)] == [1, 2]
    assert [marker.outputs for marker in second.shards] == [marker.outputs for marker in first.shards]


def test_a_failure_that_passes_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BACKOFF", 0.01)
    done = run(tmp_path, ["flaky", "dies", "fine"])
    assert done.quarantined == []
    assert done.counters["rows"] == 3


def test_a_poison_shard_is_quarantined_with_its_reason_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "BACKOFF", 0.01)
    done = run(tmp_path, ["a", "poison", "c"])
    assert done.quarantined == [{"shard": 1, "reason": "ValueError: cannot be read"}]
    assert [output.path for marker in done.shards for output in marker.outputs] == ["00000.txt", "00002.txt"]
    assert len((tmp_path / "notes" / "1").read_text()) == 2  # once and one retry


def test_a_user_error_comes_through_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="key=value: mend it"):
        run(tmp_path, ["user"], retries=5)
    assert len((tmp_path / "notes" / "0").read_text()) == 1
