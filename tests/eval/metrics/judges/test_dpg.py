"""DPG-Bench: answers with dependencies, its table, and a small model that answers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataprep.io.errors import UserError
from eval.metrics.judges.answerers import load_answerer
from eval.metrics.judges.base import Verdict
from eval.metrics.judges.config import JudgeConfig
from eval.metrics.judges.dpg import Question, is_yes, make_judge, read_questions, score_answers
from eval.metrics.judges.registry import JUDGES, find_protocol
from tests.helpers.foreign import save_answerer

IMAGE = np.zeros((40, 40, 3), np.uint8)
HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)
ROWS = [
    ("cat1", "a red cat", "", "1", "0", "entity - whole", "whole", "entity - whole (cat)", "Is there a cat?"),
    ("cat1", "a red cat", "", "2", "1", "attribute - color", "color", "attribute (cat, red)", "Is the cat red?"),
    ("cat1", "a red cat", "", "3", "2", "attribute - color", "color", "attribute (red, dark)", "Is the red dark?"),
    ("dog1", "a dog", "", "1", "0", "entity - whole", "whole", "entity - whole (dog)", "Is there a dog?"),
]


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "dpg_bench.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER.split(","))
        writer.writerows(ROWS)
    return str(path)


def test_questions_of_the_table(table: str) -> None:
    questions = read_questions(table)
    assert list(questions) == ["a red cat", "a dog"]
    assert questions["a red cat"][1] == Question(2, "Is the cat red?", (1,), "attribute")
    assert find_protocol(table) == "dpg"


def test_a_no_carries_over_to_what_depends_on_it(table: str) -> None:
    asked = read_questions(table)["a red cat"]
    assert score_answers(asked, {"1": 1.0, "2": 1.0, "3": 1.0}) == 1
    assert score_answers(asked, {"1": 1.0, "2": 0.0, "3": 1.0}) == pytest.approx(1 / 3)
    assert score_answers(asked, {"1": 0.0, "2": 1.0, "3": 1.0}) == 0  # of the grandchild too


def test_judge_and_summary(table: str) -> None:
    answers = {
        "Is there a cat?": "Yes",
        "Is the cat red?": "no",
        "Is the red dark?": "yes.",
        "Is there a dog?": "yes, one",
    }
    judge = make_judge(read_questions(table), lambda image, question: answers[question])
    prompts = ["a red cat", "a dog", "a bird"]
    values = judge([IMAGE] * 3, prompts)
    assert values == [{"1": 1.0, "2": 0.0, "3": 1.0}, {"1": 1.0}, {}]
    config = JudgeConfig(kind="dpg", model="vqa", protocol=table)
    verdicts = [Verdict(prompt, value) for prompt, value in zip(prompts, values, strict=True)]
    summary = JUDGES["dpg"].summarize(config, verdicts)
    assert summary["score"]["value"] == pytest.approx((1 / 3 + 1) / 2)
    assert (summary["entity"]["value"], summary["attribute"]["value"]) == (1, 0.5)  # questions as they were answered
    assert JUDGES["dpg"].summarize(config, verdicts[2:]) == {}


@pytest.mark.parametrize(("answer", "yes"), [("yes", True), (" Yes, it is", True), ("no", False), ("yesterday", False)])
def test_yes(answer: str, yes: bool) -> None:
    assert is_yes(answer) is yes


def test_a_model_of_transformers_answers(tmp_path: Path, table: str) -> None:
    folder = save_answerer(tmp_path / "vqa")
    config = JudgeConfig(kind="dpg", model=folder, protocol=table)
    assert table in JUDGES["dpg"].check(config)
    answer = load_answerer(config, "cpu", "")
    assert {answer(IMAGE, "is there a red cat ?"), answer(IMAGE + 255, "is a cat ?")} <= {"yes", "no"}
    own: Any = None
    (values,) = JUDGES["dpg"].load(config, own, "cpu")([IMAGE], ["a red cat"])
    assert values.keys() == {"1", "2", "3"} and set(values.values()) <= {0.0, 1.0}
    assert JUDGES["dpg"].describe(config) == {"model": "vilt answers (vqa)", "resolution": None}


def test_wrong_inputs(tmp_path: Path, table: str) -> None:
    with pytest.raises(UserError, match=r"dpg=/none has no config\.json; give a folder of a model of transformers"):
        JUDGES["dpg"].check(JudgeConfig(kind="dpg", model="/none", protocol=table))
    with pytest.raises(UserError, match="dpg lacks protocol; name its table"):
        read_questions(None)
    (tmp_path / "other.csv").write_text("text,proposition_id\na,1\n")
    with pytest.raises(UserError, match="lacks column dependency; give DPG-Bench's"):
        read_questions(str(tmp_path / "other.csv"))
    (tmp_path / "bad.csv").write_text(f"{HEADER}\ncat1,a cat,,one,0,entity,,,Is there a cat?\n")
    with pytest.raises(UserError, match=r"bad\.csv: line 2: invalid literal"):
        read_questions(str(tmp_path / "bad.csv"))
    (tmp_path / "config.json").write_text("{}")
    own: Any = None
    with pytest.raises(UserError, match="cannot be loaded"):
        JUDGES["dpg"].load(JudgeConfig(kind="dpg", model=str(tmp_path), protocol=table), own, "cpu")
