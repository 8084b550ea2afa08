"""The pipeline as a list: reading it is reading the system.

Each stage is one file of this package. A stage reads nothing but its part of the config and its inputs, both typed in
that file; `pipeline.store.fingerprint` finds the code that its ``run`` reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.stages import (
    annotate,
    caption,
    card,
    clip,
    distillation,
    download,
    embed,
    evaluate,
    listing,
    pack,
    prior,
    refinement,
    report,
    sample,
    schedule,
    score,
    select,
    subject,
    text_encoder,
    text_tuning,
    train,
    vq,
)
from pipeline.stages.base import Stage, StageConfig, StageType

if TYPE_CHECKING:
    from pipeline.config import RunConfig

STAGES: dict[str, StageType] = {  # in this order; a stage stands after its inputs
    "subject": subject.STAGE,  # if asked for: a few images of a subject, and the model's own of its class -> a folder
    "listing": listing.STAGE,  # list of URLs, folder, tars or the embedded corpus -> rows in shards
    "download": download.STAGE,  # rows -> images in tars; a status and a reason per row
    "annotate": annotate.STAGE,  # images and captions -> sizes, hashes, caption statistics, language
    "encoder": text_encoder.STAGE,  # a T5 or BERT encoder: checked, or pretrained on the captions
    "clip": clip.STAGE,  # a CLIP: checked, or trained on the pairs
    "score": score.STAGE,  # pairs -> CLIP similarity, heads
    "select": select.STAGE,  # columns and rules -> keep or drop, with the reason
    "caption": caption.STAGE,  # if asked for: kept images -> further captions by a vision-language model
    "pack": pack.STAGE,  # kept images -> one column per training resolution
    "text_tuning": text_tuning.STAGE,  # if asked for: the encoder learns words or LoRA through an image model
    "embed": embed.STAGE,  # kept captions -> text embeddings
    "card": card.STAGE,  # what the data set consists of
    "prior": prior.STAGE,  # an entry of `train` with task: prior: captions -> CLIP embeddings of images
    "train": train.STAGE,  # one stage per entry of `train`: pack and embeddings -> checkpoints, EMA weights
    "train_distillation": distillation.STAGE,  # with task distillation: a trained stage -> one of few evaluations
    "train_vq": vq.STAGE,  # also of `train`, with task vq: pack -> autoencoders with a codebook
    "train_refinement": refinement.STAGE,  # with task refinement: pack, embeddings and an autoencoder -> such stages
    "schedule": schedule.STAGE,  # if asked for: noise levels of few evaluations, fitted to the trained stages
    "sample": sample.STAGE,  # prompts -> images through the cascade
    "evaluate": evaluate.STAGE,  # images -> metrics
    "report": report.STAGE,  # everything -> one HTML page
}


def stage_type(name: str) -> StageType | None:
    """Returns the type of the stage called ``name``, such as ``train.base``; None where there is none (any more)."""
    return STAGES.get(name) or STAGES.get(name.partition(".")[0])


def list_stages(config: RunConfig) -> list[Stage]:
    """Returns every stage of a run, each after its inputs."""
    found: dict[str, Stage] = {}
    for kind in STAGES.values():
        configs = kind.instances(config) if kind.instances else {kind.name: kind.config.from_run(config)}
        for name, part in configs.items():
            found[name] = _stage(name, kind, part, config, found)
    return list(found.values())


def _stage(name: str, kind: StageType, part: StageConfig, config: RunConfig, before: dict[str, Stage]) -> Stage:
    inputs = kind.inputs.names(before, lambda optional: kind.optional(config, optional))
    if kind.instance_inputs is not None:
        inputs += kind.instance_inputs(config, name.partition(".")[2])
    return Stage(
        name=name,
        type=kind,
        config=part,
        inputs=inputs,
        sources=_bind_sources(name, kind, config),
        placement=kind.placement(config),
    )


def _bind_sources(name: str, kind: StageType, config: RunConfig) -> Callable[[], list[str]] | None:
    whole, single = kind.sources, kind.instance_sources
    if single is not None:
        return lambda: single(config, name.partition(".")[2])
    return (lambda: whole(config)) if whole is not None else None
