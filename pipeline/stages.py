"""The pipeline as a list: reading it is reading the system.

A stage sees nothing but the config keys and the inputs named here, so its fingerprint needs nothing else but the code
that its function reaches, which `pipeline.fingerprint` finds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.config import RunConfig
from pipeline.context import StageFunction
from pipeline.steps import data, evaluate, judge, learn, models, page


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline."""

    name: str
    function: StageFunction
    config: tuple[str, ...]  # dotted keys of the config that it sees
    inputs: tuple[str, ...] = ()  # stages whose artifacts it reads
    sources: Callable[[RunConfig], list[str]] | None = None  # files from outside whose bytes count, checked on the way


def stages(config: RunConfig) -> list[Stage]:
    """Every stage of the run, in an order in which each stands after its inputs."""
    cascade = tuple(f"train.{name}" for name in config.train)
    pairs = ("download",) if config.clip.train is None else ("download", "encoder")
    swept = (*cascade, "encoder") if config.evaluate.sweep else ()
    judged = ("sample", "clip", "pack", *swept)
    return [
        Stage("listing", data.listing, ("listing", "seed"), sources=data.listing_sources),
        Stage("download", data.download, ("listing", "download", "seed"), ("listing",)),
        Stage("annotate", data.annotate, ("annotate",), ("download",)),
        Stage("encoder", models.encoder, ("encoder", "seed"), ("download",), sources=models.encoder_sources),
        Stage("clip", models.clip, ("clip.model", "clip.pretrained", "clip.train", "seed"), pairs, models.clip_sources),
        Stage("score", data.score, ("score",), ("download", "clip"), data.score_sources),
        Stage("select", data.select, ("select", "clip.min_similarity"), ("download", "annotate", "score")),
        Stage("pack", data.pack, ("pack",), ("download", "select")),
        Stage("embed", data.embed, ("embed",), ("pack", "encoder")),
        Stage("card", page.card, ("card",), page.DATA),
        *(Stage(name, learn.train, (name, "seed"), ("pack", "embed")) for name in cascade),
        Stage(
            "sample",
            judge.sample,
            ("sample", "listing.source", "seed"),
            (*cascade, "encoder", "clip"),
            judge.prompt_files,
        ),
        Stage("evaluate", evaluate.evaluate, ("evaluate",), judged, evaluate.evaluate_sources),
        Stage("report", page.report, (), (*page.REPORTED, *cascade, "sample", "evaluate")),
    ]
