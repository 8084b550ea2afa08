"""The pipeline as a list: reading it is reading the system.

A stage sees nothing but the config keys and the inputs named here, so its fingerprint needs nothing else but the code
that its function reaches, which `pipeline.fingerprint` finds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from pipeline.config import STORED_PIXELS, TEXT_KEYS, RunConfig
from pipeline.context import StageFunction
from pipeline.steps import data, evaluate, judge, learn, models, page


class Work(Enum):
    """What of a stage's work happens where; it decides what may run beside it, and is no part of a fingerprint."""

    DRIVER = "in the driver"
    SHARDS = "in a pool of CPU workers"
    MODELS = "in a pool of workers with a model, on GPUs where there are any"
    GROUP = "in a training group"


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline."""

    name: str
    function: StageFunction
    config: tuple[str, ...]  # dotted keys of the config that it sees
    inputs: tuple[str, ...] = ()  # stages whose artifacts it reads
    sources: Callable[[RunConfig], list[str]] | None = None  # files from outside whose bytes count, checked on the way
    work: Work = Work.DRIVER


def stages(config: RunConfig) -> list[Stage]:
    """Every stage of the run, in an order in which each stands after its inputs."""
    cascade = tuple(f"train.{name}" for name in config.train)
    pairs = ("download",) if config.clip.train is None else ("download", "encoder")
    swept = (*cascade, "encoder") if config.evaluate.sweep else ()
    judged = ("sample", "clip", "pack", *swept)
    fit_t5 = Work.DRIVER if config.encoder.pretrain is None else Work.GROUP
    fit_clip = Work.DRIVER if config.clip.train is None else Work.GROUP
    clip_keys = ("clip.model", "clip.pretrained", "clip.train", STORED_PIXELS, "seed")
    select_keys = ("select", "clip.min_similarity", "listing.source")
    shards, with_model, group = Work.SHARDS, Work.MODELS, Work.GROUP
    return [
        Stage("listing", data.listing, ("listing", "seed"), sources=data.listing_sources),
        Stage("download", data.download, ("listing", "download", "seed"), ("listing",), work=shards),
        Stage("annotate", data.annotate, ("annotate", STORED_PIXELS), ("download",), work=shards),
        Stage("encoder", models.encoder, ("encoder", "seed"), ("download",), models.encoder_sources, fit_t5),
        Stage("clip", models.clip, clip_keys, pairs, models.clip_sources, fit_clip),
        Stage("score", data.score, ("score", STORED_PIXELS), ("download", "clip"), data.score_sources, with_model),
        Stage("select", data.select, select_keys, ("download", "annotate", "score")),
        Stage("pack", data.pack, ("pack", STORED_PIXELS), ("download", "select"), work=shards),
        Stage("embed", data.embed, ("embed",), ("pack", "encoder"), work=with_model),
        Stage("card", page.card, ("card",), page.DATA),
        *(Stage(name, learn.train, (name, "seed"), ("pack", "embed"), work=group) for name in cascade),
        Stage(
            "sample",
            judge.sample,
            ("sample", "listing.source", *TEXT_KEYS, "seed"),
            (*cascade, "encoder", "clip"),
            judge.prompt_files,
            with_model,
        ),
        Stage("evaluate", evaluate.evaluate, ("evaluate", *TEXT_KEYS), judged, evaluate.evaluate_sources, with_model),
        Stage("report", page.report, (), (*page.REPORTED, *cascade, "sample", "evaluate")),
    ]
