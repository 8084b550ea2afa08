"""The blind test: order and sides by the seed, and the counting of choices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dataprep.io.errors import UserError
from pipeline.compare.blind_test import count_choices, render_blind_test, seal_key, summarize_choices, unseal_key
from pipeline.compare.runs import load_pairs
from tests.helpers.compared import load_both


def write_choices(path: Path, **changes: Any) -> str:
    """Writes a file as the page saves it: three pairs; A is left on the first and the last."""
    key = seal_key({"names": ["one", "other"], "a_is_left": [True, False, True]})
    answers = {"0": {"text": "left", "image": "right"}, "1": {"text": "left", "image": "left"}, "2": {"text": "same"}}
    file = {"format": 1, "test": "t", "sealed": key, "choices": answers} | changes
    path.write_text(json.dumps(file))
    return str(path)


def test_choices_are_counted_by_run_and_not_by_side(tmp_path: Path) -> None:
    paths = [write_choices(tmp_path / "1.json"), write_choices(tmp_path / "2.json")]
    found = count_choices(paths)
    assert (found["names"], found["raters"], found["pairs"]) == (["one", "other"], 2, 3)
    assert {key: found["text"][key] for key in ("a", "b", "same")} == {"a": 2, "b": 2, "same": 2}
    assert {key: found["image"][key] for key in ("a", "b", "same")} == {"a": 0, "b": 4, "same": 0}
    assert found["image"]["share_b"] == 1
    assert found["image"]["p"] == pytest.approx(0.125)
    assert found["text"]["low"] < 0.5 < found["text"]["high"]
    lines = summarize_choices(found)
    assert lines[0] == "A = one, B = other; 2 raters, 3 pairs"
    assert lines[1].endswith("p = 1: inconclusive")
    assert lines[2].endswith("B is preferred")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"sealed": "?"}, "not a file of choices"),
        ({"choices": {"3": {"text": "left"}}}, "not a file of choices"),
        ({"choices": {"0": {"text": "both"}}}, "not a file of choices"),
    ],
)
def test_files_that_cannot_be_counted(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        count_choices([write_choices(tmp_path / "c.json", **changes)])


def test_missing_files_and_mixed_tests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        count_choices([str(tmp_path / "none.json")])
    with pytest.raises(UserError, match="belongs to another test"):
        count_choices([write_choices(tmp_path / "1.json"), write_choices(tmp_path / "2.json", test="u")])


def test_sides_and_order_follow_the_seed(runs: tuple[Path, Path]) -> None:
    a, b = load_both(runs)
    pairs = load_pairs(a, b)
    page = render_blind_test(a, b, pairs, 30, 1)
    assert page == render_blind_test(a, b, pairs, 30, 1) != render_blind_test(a, b, pairs, 30, 2)
    assert page.count('class="pair"') == 30
    assert str(runs[0]) not in page
    test = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    left = unseal_key(test["sealed"])["a_is_left"]
    assert len(left) == 30
    assert 5 <= sum(left) <= 25
