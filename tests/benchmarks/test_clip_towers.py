"""The comparison of CLIP's towers, at a size that learns nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import clip_towers
from tests.helpers.encoders import save_encoder


def test_every_pair_of_towers_spends_the_time_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = dict(zip(clip_towers.TOWERS, (0.2, 0.1, 0.4, 0.3), strict=True))
    monkeypatch.setattr(clip_towers, "time_updates", lambda *_: seconds)
    written: dict[str, Any] = {}
    monkeypatch.setattr(clip_towers, "BATCH", 4)
    monkeypatch.setattr(clip_towers, "HELD_OUT", 8)
    monkeypatch.setattr(
        clip_towers, "LOOP", clip_towers.LOOP.model_copy(update={"batch_size": 4, "steps": 8, "warmup_steps": 1})
    )
    monkeypatch.setattr(clip_towers, "write_result", lambda name, rows, claims, *_: written.update(rows=rows))
    encoder = save_encoder(tmp_path / "encoder", "t5")
    words = ["clip_towers", "--seeds", "0", "--updates", "8", "--scenes", "16", "--encoder", encoder]
    monkeypatch.setattr("sys.argv", words)
    clip_towers.main()
    rows = written["rows"]
    assert [row["towers"] for row in rows] == list(clip_towers.TOWERS)
    assert [row["updates"] for row in rows] == [8, 16, 4, 5]
    assert [row["cpu_ms_per_update"] for row in rows] == [200, 100, 400, 300]
    assert all(0 <= row["recall_at_1"] <= row["recall_at_5"] <= 1 for row in rows)


def test_an_update_is_timed_without_the_start_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {"fast": 0.25, "slow": 0.5}

    def train_for(task: str, scenes: object, updates: int, folder: Path, seed: int) -> tuple[dict[str, Any], float]:
        late = 7.0 if folder.name == "slow-1-16" else 0.0  # one disturbed round does not count
        return {}, 3.0 + cost[task] * updates + late

    monkeypatch.setattr(clip_towers, "train_for", train_for)
    tasks: Any = {name: name for name in cost}
    scenes: Any = None
    assert clip_towers.time_updates(tasks, scenes, tmp_path) == cost
