"""Lines end at line feeds and carriage returns, and nowhere else."""

from __future__ import annotations

import json

from dataprep.io import storage
from dataprep.io.text_lines import split_lines


def test_only_line_ends_split() -> None:
    others = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e\0"
    assert split_lines(f"a{others}b\nc\r\nd\re\n") == [f"a{others}b", "c", "d", "e", ""]


def test_json_lines_hold_any_character() -> None:
    values = [{"text": f"a{character}b"} for character in "\u2028\u2029\u0085\x0b\x1c\n\r\0"]
    text = "\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    storage.write_bytes("memory://lines.jsonl", f"{text}\n{{".encode())
    assert storage.read_json_lines("memory://lines.jsonl") == values
