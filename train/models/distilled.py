"""What an exported stage's ``config.json`` says of its distillation. Light: loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Distilled(NamedTuple):
    """That a stage was distilled, and how it has to be sampled."""

    teacher: str  # digest of its weights
    guidance: float  # of the teacher, which the stage has learned
    sampling: Mapping[str, Any]  # sampler settings as JSON by name, without which its images are of no worth


def read_distilled(settings: Mapping[str, Any]) -> Distilled | None:
    """Returns what the content of a stage's ``config.json`` says; None: the stage is not distilled."""
    found = settings.get("distilled")
    return None if found is None else Distilled(**found)
