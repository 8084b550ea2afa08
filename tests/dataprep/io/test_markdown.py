"""Markdown tables: alignment, numbers, and foreign text that stays in its cell."""

from __future__ import annotations

import pytest

from dataprep.io.markdown import escape_cell, format_table, read_front_matter


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (1234567, "1,234,567"),
        ("a | b\n<img src=x> [c](d)", r"a \| b &lt;img src=x&gt; \[c\](d)"),
        ("@e `f` a_b # ~g~ *h* & \\", r"\@e \`f\` a\_b \# \~g\~ \*h\* &amp; \\"),
        (0.5, "0.5"),
        (None, "None"),
    ],
)
def test_cell_shows_text_as_it_is(value: object, cell: str) -> None:
    assert escape_cell(value) == cell


def test_heads_with_a_hash_align_right() -> None:
    lines = format_table(["stage", "#rows"], [("pack", 1000), ("a|b", 2)])
    assert lines == ["| stage | rows |", "|---|---:|", "| pack | 1,000 |", "| a\\|b | 2 |"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# Card", {"license": "mit", "tags": ["a"]}),
        ("---\nlicense: mit\n---", {"license": "mit"}),
        ("# Card\n---\nlicense: mit\n---\n", {}),
        ("---\n- a list\n---\n", {}),
        ("---\na: [\n---\n", {}),
        ("", {}),
    ],
)
def test_front_matter_of_a_card(text: str, values: dict[str, object]) -> None:
    assert read_front_matter(text) == values
