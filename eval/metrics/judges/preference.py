"""What the kinds of judges have in common that are one number per image: a file or folder, a mean with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataprep.io.errors import UserError
from dataprep.io.storage import join, list_files, read_json
from eval.metrics.judges.base import Judge, Verdict

if TYPE_CHECKING:
    from eval.metrics.judges.config import JudgeConfig

SCORE = "score"


class ScalarJudge(Judge):
    """A judge that gives every image one score."""

    def summarize(self, config: JudgeConfig, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        """Returns the mean score with its 95% interval."""
        from eval.metrics.intervals import bootstrap_mean

        return {"mean score": bootstrap_mean([verdict.values[SCORE] for verdict in verdicts])}


def check_file(config: JudgeConfig, needs: str) -> list[str]:
    """Returns the file ``config.model``; raises UserError unless it is one."""
    if not Path(config.model).is_file():
        raise UserError(f"evaluate.judges: {config.kind}={config.model} is no local file; give {needs}")
    return [config.model]


def check_folder(config: JudgeConfig, needs: str) -> list[str]:
    """Returns the files of the folder ``config.model``; raises UserError unless transformers' config.json is there."""
    if not (Path(config.model) / "config.json").is_file():
        raise UserError(f"evaluate.judges: {config.kind}={config.model} has no config.json; give {needs}")
    return [join(config.model, name) for name in list_files(config.model)]


def read_model_config(folder: str) -> Mapping[str, Any]:
    """Returns the content of a folder's config.json; empty where it holds no object."""
    found = read_json(join(folder, "config.json"))
    return found if isinstance(found, dict) else {}


def refuse_model(config: JudgeConfig, error: Exception, needs: str) -> UserError:
    """Returns the error of a model that cannot be loaded."""
    reason = " ".join(str(error).split())[:200]
    return UserError(f"evaluate.judges: {config.kind}={config.model} cannot be loaded ({reason}); give {needs}")
