"""DPG-Bench: dense prompts by questions to a model that answers them (Hu et al. 2024), after the user's copy.

The table has a row per question. A question counts as answered with no if one that it depends on is.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataprep.io.errors import UserError
from dataprep.io.inputs import read_input
from eval.metrics.judges.base import Judge, JudgeImages, Verdict
from eval.metrics.judges.preference import check_folder, read_model_config

if TYPE_CHECKING:
    import numpy as np

    from eval.clip.scorer import ClipScorer
    from eval.metrics.judges.answerers import Answer
    from eval.metrics.judges.config import JudgeConfig

TABLE = "dpg_bench.csv"
COLUMNS = ("text", "proposition_id", "dependency", "category_broad", "question_natural_language")


@dataclass(frozen=True)
class Question:
    """A question about the image of a prompt."""

    id: int
    text: str
    parents: tuple[int, ...]  # questions that it depends on
    category: str


class DpgJudge(Judge):
    """Share of the questions about an image that are answered with yes."""

    title = "DPG-Bench"
    description = "Share of questions about the prompt's content that a model answers with yes; by kind of content."
    needs = "a folder of a model of transformers that answers questions about images, such as blip-vqa or a Qwen2-VL"
    protocol_name = "DPG-Bench"

    def recognises(self, prompts_file: str) -> bool:
        """Whether the header is that of the benchmark's table."""
        if not prompts_file.endswith(".csv") or not Path(prompts_file).is_file():
            return False
        with Path(prompts_file).open(encoding="utf-8-sig", errors="replace", newline="") as file:
            return set(COLUMNS) <= set(next(csv.reader(file), []))

    def check(self, config: JudgeConfig) -> list[str]:
        """Returns the table and the model's files."""
        read_questions(config.protocol)
        return [*check_folder(config, self.needs), str(config.protocol)]

    def load(self, config: JudgeConfig, own: ClipScorer, device: str) -> JudgeImages:
        """Loads the model that answers."""
        from eval.metrics.judges.answerers import load_answerer

        return make_judge(read_questions(config.protocol), load_answerer(config, device, self.needs))

    def summarize(self, config: JudgeConfig, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        """Returns the mean score over images, and the share of yes by category over questions."""
        from eval.metrics.intervals import bootstrap_mean

        questions, by_category, scores = read_questions(config.protocol), defaultdict(list), list[float]()
        for verdict in verdicts:
            asked = questions.get(verdict.prompt, ())
            if not verdict.values:
                continue
            scores.append(score_answers(asked, verdict.values))
            for question in asked:
                by_category[question.category].append(verdict.values[str(question.id)])
        if not scores:
            return {}
        return {"score": bootstrap_mean(scores)} | {name: bootstrap_mean(yes) for name, yes in by_category.items()}

    def describe(self, config: JudgeConfig) -> dict[str, Any]:
        """Returns the model's kind. It sees whole images at the size that its own config sets."""
        kind = read_model_config(config.model).get("model_type")
        return {"model": f"{kind} answers ({Path(config.model).name})", "resolution": None}


@cache
def read_questions(path: str | None) -> dict[str, tuple[Question, ...]]:
    """Returns the questions of DPG-Bench's table by prompt; raises UserError for another file."""
    if path is None:
        raise UserError(f"evaluate.judges: dpg lacks protocol; name its table, {TABLE}")
    text = read_input(path, "evaluate.judges: protocol", f"give DPG-Bench's {TABLE}").decode("utf-8-sig", "replace")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if lacking := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
        raise UserError(f"evaluate.judges: {path} lacks column {lacking[0]}; give DPG-Bench's {TABLE}")
    found: dict[str, list[Question]] = defaultdict(list)
    for row in rows:
        try:
            parents = tuple(int(part) for part in row["dependency"].split(",") if int(part) != 0)
            number = int(row["proposition_id"])
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"evaluate.judges: {path}: line {rows.line_num}: {error}; give the table again") from error
        category = row["category_broad"].split("-")[0].strip()
        found[row["text"].strip()].append(Question(number, row["question_natural_language"], parents, category))
    return {prompt: tuple(questions) for prompt, questions in found.items()}


def make_judge(questions: Mapping[str, Sequence[Question]], answer: Answer) -> JudgeImages:
    """Returns the judge of images: 1 or 0 by id of the question; prompts without questions get no verdict."""

    def judge(images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[Mapping[str, float]]:
        return [
            {str(item.id): float(is_yes(answer(image, item.text))) for item in questions.get(prompt, ())}
            for image, prompt in zip(images, prompts, strict=True)
        ]

    return judge


def is_yes(answer: str) -> bool:
    """Whether the first word of an answer is yes."""
    return answer.strip().lower().split(" ", 1)[0].strip(".,!") == "yes"


def score_answers(questions: Sequence[Question], answers: Mapping[str, float]) -> float:
    """Returns the share of yes, where a question counts as no if a question that it depends on counts so.

    Questions come after those that they depend on.
    """
    counted: dict[int, float] = {}
    for item in questions:
        held = all(counted.get(parent, 1.0) for parent in item.parents)
        counted[item.id] = answers[str(item.id)] if held else 0.0
    return sum(counted.values()) / len(counted)
