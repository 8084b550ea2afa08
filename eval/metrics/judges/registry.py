"""The kinds of judges. To add one, write a `Judge` in a file of its own and name it in `JUDGES`."""

from __future__ import annotations

from eval.metrics.judges.aesthetic import AestheticJudge
from eval.metrics.judges.base import Judge
from eval.metrics.judges.dpg import DpgJudge
from eval.metrics.judges.geneval import GenEvalJudge
from eval.metrics.judges.hps import HpsJudge
from eval.metrics.judges.imagereward import ImageRewardJudge
from eval.metrics.judges.pickscore import PickScoreJudge

JUDGES: dict[str, Judge] = {
    "pickscore": PickScoreJudge(),
    "hps": HpsJudge(),
    "aesthetic": AestheticJudge(),
    "imagereward": ImageRewardJudge(),
    "geneval": GenEvalJudge(),
    "dpg": DpgJudge(),
}


def find_protocol(prompts_file: str) -> str | None:
    """Returns the judge whose benchmark a prompt file is of; None for any other file."""
    return next((name for name, judge in JUDGES.items() if judge.recognises(prompts_file)), None)
