"""The last row of a log."""

from __future__ import annotations

from pathlib import Path

from pipeline.store.log_tail import TAIL_BYTES, read_last_row


def test_the_last_complete_row_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_last_row(str(path)) is None
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert read_last_row(str(path)) == {"step": 2}
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(TAIL_BYTES // 8)))
    assert read_last_row(str(path)) == {"step": TAIL_BYTES // 8 - 1}
