"""Lines end at line feeds and carriage returns, and nowhere else; half a character is no text."""

from __future__ import annotations

import json

import pytest

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.plain_text import check_text, split_lines


def test_only_line_ends_split() -> None:
    others = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e\0"
    assert split_lines(f"a{others}b\nc\r\nd\re\n") == [f"a{others}b", "c", "d", "e", ""]


def test_json_lines_hold_any_character() -> None:
    values = [{"text": f"a{character}b"} for character in "\u2028\u2029\u0085\x0b\x1c\n\r\0"]
    text = "\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    storage.write_bytes("memory://lines.jsonl", f"{text}\n{{".encode())
    assert storage.read_json_lines("memory://lines.jsonl") == values


def test_what_is_no_text_is_named() -> None:
    assert check_text(" a\u2028b", "it") == " a\u2028b"
    for text, message in [("caf\udce9", "it 'caf.udce9': not UTF-8 at character 3"), ("a\0", "it 'a.x00': has a NUL")]:
        with pytest.raises(UserError, match=message):
            check_text(text, "it")
