"""A run folder written by hand: one stage of each state."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

STATES = {"listing": "done", "download": "running", "train.base": "running", "train.sr64": "pending"}


def write_small_run(root: Path, status: str = "finished", **values: Any) -> Path:
    """Writes a run whose listing is done, whose download has 2 shards, and whose base is at step 40; returns it."""
    stages = {name: {"fingerprint": f"{name}-1", "state": state} for name, state in STATES.items()}
    record = {"status": status, "started": "2026-01-02T03:04:05.000+00:00", "seed": 7, "stages": stages, **values}
    folders = {name: root / "stages" / name / f"{name}-1" for name in STATES}
    for folder in folders.values():
        folder.mkdir(parents=True)
    (root / "run.json").write_text(json.dumps(record))
    events = (("03:04:05", "run_started"), ("03:14:05", "stage_started"))
    lines = [json.dumps({"time": f"2026-01-02T{time}.000+00:00", "event": kind}) for time, kind in events]
    (root / "events.jsonl").write_text("\n".join(lines) + "\n")
    (folders["listing"] / "00000.parquet").write_bytes(b"listed")
    manifest: dict[str, Any] = {"stage": "listing", "fingerprint": "listing-1", "inputs": {}, "config": {}}
    output = {"path": "00000.parquet", "bytes": 6, "sha256": hashlib.sha256(b"listed").hexdigest(), "rows": 3}
    manifest |= {
        "outputs": [output],
        "counters": {"rows": 3, "usable": 3},
        "seconds": 1.25,
        "versions": {},
        "shards": [],
    }
    (folders["listing"] / "manifest.json").write_text(json.dumps(manifest))
    (folders["download"] / ".shards").mkdir()
    for name in ("00000.json", "00001.json", "batch-00000002.json"):
        (folders["download"] / ".shards" / name).write_text("{}")
    (folders["train.base"] / "log.jsonl").write_text('{"step": 20, "loss": 0.75}\n{"step": 40, "loss": 0.5}\n{"st')
    return root
