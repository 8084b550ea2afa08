"""The comparison of CLIP's towers, at a size that learns nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import clip_towers
from tests.helpers.encoders import save_encoder


def test_every_pair_of_towers_spends_the_operations_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert rows[0]["updates"] == 8
    for row in rows:
        least = max(1, 8 * rows[0]["gflops_per_update"] / row["gflops_per_update"])
        assert row["updates"] == pytest.approx(least, abs=0.6) and 0 <= row["recall_at_1"] <= row["recall_at_5"] <= 1
