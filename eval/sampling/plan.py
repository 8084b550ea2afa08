"""A sampling call, checked and resolved: which stages run, with which settings, at which sizes, from which inputs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dataprep.io.errors import UserError
from eval.sampling import image_editing
from eval.sampling.attention import find_text_layers
from eval.sampling.config import SamplingConfig
from eval.sampling.options import DEFAULT_STRENGTH, SamplingOptions, Size, override_sampling
from eval.sampling.stage_sampler import LoadedStage
from eval.sampling.tiles import LEAST
from train.models.backbones import backbone_name, find_backbone


@dataclass(frozen=True)
class SamplingPlan:
    """A resolved call. Images are uint8 (H, W, 3), the mask bool (H, W)."""

    prior: LoadedStage | None  # if it runs
    stages: Sequence[LoadedStage]  # those that run
    numbers: Mapping[str, int]  # stage name -> its position in the whole cascade, which is part of the noise's seed
    settings: Mapping[str, SamplingConfig]
    size: Size
    seed: int
    texts: Mapping[str, np.ndarray]
    negative_prompt: str
    negative: np.ndarray | None
    image_HWC: np.ndarray | None
    mask_HW: np.ndarray | None
    one_noise: bool = False  # all images of a prompt have the noise of the first
    watched: frozenset[str] = frozenset()  # the stages of which is recorded where they look


def make_plan(
    cascade: Sequence[LoadedStage],
    stages: Sequence[LoadedStage],
    options: SamplingOptions,
    texts: Mapping[str, np.ndarray],
    prior: LoadedStage | None = None,
) -> SamplingPlan:
    """Resolves ``options`` for the ``stages`` of a ``cascade`` that run.

    ``texts`` holds the embedding of every prompt and of the negative one. The ``prior`` of the cascade, if it has one,
    runs where a stage takes an image embedding, and no image gives it. Raises UserError for an unknown setting, and for
    a size that the stages cannot sample.
    """
    if find_taker(stages) is None or (options.variations_of is not None and not options.to_prompt):
        prior = None
    running = [*([] if prior is None else [prior]), *stages]
    changes = dict(options.changes)
    if options.image is not None and options.mask is None and changes.get("strength") is None:
        changes["strength"] = DEFAULT_STRENGTH
    settings = {stage.entry.name: override_sampling(stage.entry, changes) for stage in running}
    if options.negative:
        _check_negative(stages, settings)
    if options.mask is not None:
        _check_inpainting(stages)
    image_HWC = None if options.image is None else image_editing.to_rgb(options.image)
    aspect = 1.0 if image_HWC is None else image_HWC.shape[1] / image_HWC.shape[0]
    mask = None if options.mask is None or image_HWC is None else image_editing.read_mask(options.mask, image_HWC)
    size = (
        image_editing.check_size(stages, options.size) if options.size else image_editing.nearest_size(stages, aspect)
    )
    watched = choose_watched(stages) if options.attention else frozenset()
    for stage in stages:
        _check_tile(stage, settings, image_editing.stage_size(stages, size, stage.entry.resolution), watched)
    return SamplingPlan(
        prior=prior,
        stages=stages,
        numbers={stage.entry.name: number for number, stage in enumerate(cascade)},
        settings=settings,
        size=size,
        seed=options.seed,
        texts=texts,
        negative_prompt=options.negative,
        negative=texts[options.negative] if options.negative else None,
        image_HWC=image_HWC,
        mask_HW=mask,
        one_noise=options.interpolates,
        watched=watched,
    )


def _check_tile(
    stage: LoadedStage, settings: Mapping[str, SamplingConfig], size: Size, watched: Collection[str]
) -> None:
    """Raises UserError for a tile on which a network of the stage would not work, if images of ``size`` are larger."""
    name, config = stage.entry.name, stage.model.config
    tile, networks = settings[name].tile, stage.networks() if settings[name].autoguidance else (stage.model,)
    step = math.lcm(*(network.config.size_multiple() for network in networks))
    if tile is None or tile >= max(size):
        return
    refusal = None
    if find_backbone(backbone_name(config)).task != "diffusion":
        refusal = "does not draw by diffusion; set tile for other stages alone"
    elif part := next(filter(None, (network.config.needs_whole_images() for network in networks)), None):
        refusal = f"has {part}, which needs whole images; set tile for other stages alone"
    elif tile % step or tile < LEAST * step:
        refusal = f"takes tiles of a multiple of {step} from {LEAST * step}; take one"
    elif name in watched:
        refusal = "shows where it looks in whole images alone; leave out attention, or tile"
    if refusal:
        raise UserError(f"tile {tile}: stage {name} {refusal}")


def _check_negative(stages: Sequence[LoadedStage], settings: Mapping[str, SamplingConfig]) -> None:
    """Raises UserError for a negative prompt where a weaker network has its place."""
    for stage in stages:
        if stage.guide is not None and settings[stage.entry.name].autoguidance:
            raise UserError(
                f"negative prompt: stage {stage.entry.name} is guided away from a weaker network instead; leave it "
                "out, or set autoguidance=false"
            )


def _check_inpainting(stages: Sequence[LoadedStage]) -> None:
    """Raises UserError for a mask where a distilled stage would have to take ancestral steps."""
    for stage in stages:
        if stage.entry.distilled:
            raise UserError(
                f"mask: inpainting takes ancestral steps, and stage {stage.entry.name} is distilled to others; take "
                "the model that it was distilled from"
            )


def find_taker(stages: Sequence[LoadedStage]) -> LoadedStage | None:
    """Returns the first stage that is conditioned on image embeddings; None: there is none."""
    return next((stage for stage in stages if stage.model.config.image_embedding_dim), None)


def choose_watched(stages: Sequence[LoadedStage]) -> frozenset[str]:
    """Returns the names of the stages whose networks can show where they look, and warns of the others.

    Raises UserError where none can.
    """
    seeing = frozenset(stage.entry.name for stage in stages if _shows_attention(stage))
    blind = [f"{s.entry.name} ({type(s.model).__name__})" for s in stages if s.entry.name not in seeing]
    if not seeing:
        raise UserError(
            f"attention: no stage has a layer that shows where it looks: {', '.join(blind)}; leave attention out"
        )
    for name in blind:
        warnings.warn(f"attention: stage {name} has no layer that shows where it looks", stacklevel=4)
    return seeing


def _shows_attention(stage: LoadedStage) -> bool:
    """Returns whether a network reads the caption in layers that show where they look, in steps of diffusion."""
    return find_backbone(backbone_name(stage.model.config)).task == "diffusion" and bool(find_text_layers(stage.model))


def select_stages(
    cascade: Sequence[LoadedStage], start_at: str | None = None, stop_at: str | None = None
) -> tuple[LoadedStage, ...]:
    """Returns the stages from ``start_at`` to ``stop_at``; None: from the first, to the last.

    Raises UserError for an unknown name, and for a ``start_at`` after ``stop_at``.
    """
    names = [stage.entry.name for stage in cascade]
    ends = {"start_at": start_at or names[0], "stop_at": stop_at or names[-1]}
    for key, name in ends.items():
        if name not in names:
            raise UserError(f"{key} {name!r} is not a stage; take one of {', '.join(names)}")
    first, last = names.index(ends["start_at"]), names.index(ends["stop_at"])
    if first > last:
        raise UserError(f"start_at {start_at!r} comes after stop_at {ends['stop_at']!r}; swap them")
    return tuple(cascade[first : last + 1])
