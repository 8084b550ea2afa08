"""GenEval: object composition by a detector (Ghosh et al. 2023), after the prompt file that the user has a copy of.

An image is right if the detector finds every object that the prompt names, as often as it says, where it says, and in
the colour that it says; a CLIP tells the colour of a detected object among ten.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataprep.io.errors import UserError
from dataprep.io.inputs import read_input
from dataprep.io.plain_text import split_lines
from eval.metrics.judges.base import Judge, JudgeImages, Verdict
from eval.metrics.judges.coco_names import to_coco_name
from eval.metrics.judges.preference import check_folder, read_model_config

if TYPE_CHECKING:
    from eval.clip.scorer import ClipScorer
    from eval.metrics.judges.config import JudgeConfig

PROMPTS, KEYS = "evaluation_metadata.jsonl", {"tag", "prompt", "include"}


class GenEvalJudge(Judge):
    """Share of images that show the objects of their prompts."""

    title = "GenEval"
    description = "Share of images in which a detector finds the objects of the prompt; overall: the mean over tasks."
    needs = "a folder of an object detector of transformers that knows COCO's classes, such as detr-resnet-50"
    protocol_name = "GenEval"

    def recognises(self, prompts_file: str) -> bool:
        """Whether the first line is an object with GenEval's keys."""
        if not prompts_file.endswith(".jsonl") or not Path(prompts_file).is_file():
            return False
        with Path(prompts_file).open(encoding="utf-8", errors="replace") as file:
            try:
                first = json.loads(file.readline())
            except ValueError:
                return False
        return isinstance(first, dict) and first.keys() >= KEYS

    def check(self, config: JudgeConfig) -> list[str]:
        """Returns the prompt file and the detector's files. Raises UserError too for classes it does not know."""
        files = check_folder(config, self.needs)
        known = {str(name).lower() for name in (read_model_config(config.model).get("id2label") or {}).values()}
        wanted = {item["class"] for entry in read_metadata(config.protocol).values() for item in entry["include"]}
        if unknown := sorted(name for name in wanted if to_coco_name(name).lower() not in known):
            raise UserError(
                f"evaluate.judges: geneval={config.model} does not know {len(unknown)} of the {len(wanted)} classes "
                f"({', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}); give a detector of COCO's classes"
            )
        return [*files, str(config.protocol)]

    def load(self, config: JudgeConfig, own: ClipScorer, device: str) -> JudgeImages:
        """Loads the detector. Colours are told by the CLIP that scores."""
        from eval.metrics.judges.detectors import load_detector
        from eval.metrics.judges.geneval_rules import colour_namer, make_judge

        return make_judge(read_metadata(config.protocol), load_detector(config, device, self.needs), colour_namer(own))

    def summarize(self, config: JudgeConfig, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        """Returns the share of correct images per task with its interval, and the mean over tasks."""
        from eval.metrics.intervals import wilson_interval

        metadata, by_task = read_metadata(config.protocol), defaultdict(list)
        for verdict in verdicts:
            if "correct" in verdict.values:
                by_task[str(metadata[verdict.prompt]["tag"])].append(verdict.values["correct"])
        tasks = {
            name: {"value": sum(right) / len(right)} | wilson_interval(round(sum(right)), len(right))
            for name, right in by_task.items()
        }
        overall = sum(float(task["value"]) for task in tasks.values()) / len(tasks) if tasks else None
        return {"overall": overall, **tasks}

    def describe(self, config: JudgeConfig) -> dict[str, Any]:
        """Returns the detector's kind. It sees whole images at the size that its own config sets."""
        kind = read_model_config(config.model).get("model_type")
        return {
            "model": f"{kind} detector ({Path(config.model).name}); colours by the scoring CLIP",
            "resolution": None,
        }


@cache
def read_metadata(path: str | None) -> dict[str, dict[str, Any]]:
    """Returns the entries of GenEval's prompt file by prompt; raises UserError for another file."""
    if path is None:
        raise UserError(f"evaluate.judges: geneval lacks protocol; name its prompt file, {PROMPTS}")
    found = {}
    text = read_input(path, "evaluate.judges: protocol", f"give GenEval's {PROMPTS}").decode("utf-8-sig", "replace")
    for number, line in enumerate(filter(None, split_lines(text)), start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not entry.keys() >= KEYS:
            raise UserError(f"evaluate.judges: {path}: line {number} is none of GenEval's; give its {PROMPTS}")
        found[str(entry["prompt"]).strip()] = entry
    return found
