"""Generates images from text with a trained cascade; needs neither Ray nor DeepSpeed.

    cascade = Cascade.from_pretrained("export")
    images = cascade("two small red circles left of a blue square", num=4, seed=1).images

A cascade is a folder with ``cascade.json`` (`CascadeConfig`), one folder a stage as `train.models.export` writes it,
and the text encoder's folder. docs/sampling.md shows what else can be asked of it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from dataprep.schema import UserError
from dataprep.text import TextEncoder
from eval import editing
from eval.clip import ClipScorer, Spec
from eval.generate import Inputs, Stage, pad_text, prompt_number, sample_stage
from eval.settings import SamplingConfig, StageEntry, read_cascade, resolve, stage_settings
from eval.watermark import can_carry, mark
from train.diffusion.objective import DiffusionConfig, to_pixels
from train.models.export import load_stage

STRENGTH = 0.7  # of image-to-image where the call does not say
Overlong = Literal["cut", "refuse"]


class Encoder(Protocol):
    """What turns captions into token embeddings."""

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """One float32 array (L_i, D) a caption."""
        ...

    def beyond(self, caption: str) -> str:
        """The end of the caption that the encoder does not read, for want of room; mostly empty."""
        ...


@dataclass(frozen=True)
class Samples:
    """Generated images with the prompt and the index of each, prompt by prompt.

    An image's index is its number among those of its prompt and seed; with ``best_of`` only the best ones' are there.
    """

    images: list[Image.Image]
    prompts: list[str]
    indices: list[int]
    by_stage: dict[str, list[Image.Image]]  # the same of every stage that ran; the last one's are `images`
    scores: list[float] | None = None  # CLIP's, where it chose
    making: Mapping[str, Any] = field(default_factory=dict)  # what all of them share: seed, model, settings

    def info(self, number: int) -> dict[str, Any]:
        """How image ``number`` was made, as `eval.metadata.save_png` writes it."""
        score = None if self.scores is None else round(self.scores[number], 4)
        return {"prompt": self.prompts[number], "index": self.indices[number], "score": score, **self.making}

    def take(self, numbers: Sequence[int], scores: Sequence[float]) -> Samples:
        """Those images alone."""
        return replace(
            self,
            images=[self.images[i] for i in numbers],
            prompts=[self.prompts[i] for i in numbers],
            indices=[self.indices[i] for i in numbers],
            by_stage={name: [images[i] for i in numbers] for name, images in self.by_stage.items()},
            scores=[scores[i] for i in numbers],
        )


@dataclass(frozen=True)
class Plan:
    """One call, checked: the stages that run with their settings, and what they draw from."""

    stages: Sequence[Stage]
    settings: Mapping[str, SamplingConfig]
    size: editing.Size
    seed: int
    texts: Mapping[str, np.ndarray]
    negative: np.ndarray | None
    picture_HWC: np.ndarray | None
    mask_HW: np.ndarray | None


class Cascade:
    """A text encoder and the stages from the base upwards. Immutable; calls keep no state."""

    def __init__(
        self,
        stages: Sequence[Stage],
        encoder: Encoder,
        device: str | torch.device = "cpu",
        clip: Spec | None = None,
        watermark: str | None = None,
    ) -> None:
        self.stages, self.encoder, self.device = tuple(stages), encoder, torch.device(device)
        self.clip, self.watermark = clip, watermark

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str | torch.device = "cpu", watermark: str | None = None
    ) -> Cascade:
        """Loads an exported cascade; ``watermark`` replaces the folder's own.

        UserError where a part is missing, broken or was never trained.
        """
        folder = Path(folder)
        config = read_cascade(folder)
        stages = [_load(folder, entry, device) for entry in config.stages]
        encoder = TextEncoder.from_folder(
            resolve(folder, config.encoder), config.encoder_dtype, config.max_length, str(device)
        )
        for stage in stages:
            if encoder.dim != stage.model.config.text_dim:
                raise UserError(
                    f"encoder {config.encoder}: width {encoder.dim}, stage {stage.entry.name} was trained on width "
                    f"{stage.model.config.text_dim}; name the encoder that it was trained with"
                )
        clip = {"model": resolve(folder, config.clip), "pretrained": config.clip_pretrained} if config.clip else None
        return cls(stages, encoder, device, clip, watermark or config.watermark)

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str],
        num: int = 1,
        seed: int = 0,
        *,
        negative: str = "",
        image: Image.Image | None = None,
        mask: Image.Image | None = None,
        size: editing.Size | None = None,
        start_at: str | None = None,
        stop_at: str | None = None,
        best_of: int = 1,
        overlong: Overlong = "cut",
        batch_size: int = 16,
        **settings: Any,
    ) -> Samples:
        """Generates ``num`` images a prompt; that of (prompt, seed, index) is the same in any batch, up to rounding.

        Args:
            prompts: one or several.
            num: images a prompt.
            seed: another seed, other images.
            negative: what to stay away from; guidance then leads away from it instead of from no caption.
            image: a picture to start from. Image-to-image with ``strength`` (0.7 unless given); inpainting with
                ``mask``; with ``start_at`` a super-resolution stage, what that stage and those above enlarge.
            mask: of the image's size, white where to draw anew.
            size: (width, height) of the last stage that runs; default: its square, or the image's aspect.
            start_at, stop_at: names of the first and the last stage to run; None: all.
            best_of: candidates for each image, of which the cascade's CLIP takes the best.
            overlong: whether a prompt beyond the encoder's limit is cut, with a warning, or refused.
            batch_size: images at a time.
            settings: fields of `SamplingConfig`, each for all stages or by the stage's name; None: the stage's own.

        Raises:
            UserError: an unknown name or setting, no prompt, a number out of range, a part that does not fit.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        stages = self.span(start_at, stop_at)
        self._check(prompts, {"num": num, "best_of": best_of, "batch_size": batch_size}, settings)
        self._check_image(stages, image, mask)
        if image is not None and mask is None and settings.get("strength") is None:
            settings = {**settings, "strength": STRENGTH}
        picture_HWC = None if image is None else editing.rgb(image)
        aspect = 1.0 if picture_HWC is None else picture_HWC.shape[1] / picture_HWC.shape[0]
        encoded = self._encode([*prompts, negative], overlong)
        plan = Plan(
            stages=stages,
            settings={stage.entry.name: stage_settings(stage.entry, settings) for stage in stages},
            size=editing.check_size(stages, size) if size else editing.nearest_size(stages, aspect),
            seed=seed,
            texts=encoded,
            negative=encoded[negative] if negative else None,
            picture_HWC=picture_HWC,
            mask_HW=None if mask is None or picture_HWC is None else editing.mask_of(mask, picture_HWC),
        )
        samples = self._draw(plan, [(p, i) for p in prompts for i in range(num * best_of)], batch_size)
        samples = replace(samples, making=self._making(plan, negative))
        return samples if best_of == 1 else self._best(samples, best_of)

    def _draw(self, plan: Plan, jobs: Sequence[tuple[str, int]], batch_size: int) -> Samples:
        by_stage: dict[str, list[Image.Image]] = {stage.entry.name: [] for stage in plan.stages}
        for batch in _chunks(jobs, batch_size):
            for name, x_BCHW in self._draw_batch(plan, batch).items():
                pixels = list(to_pixels(x_BCHW).cpu().numpy())
                if self.watermark and name == plan.stages[-1].entry.name:
                    pixels = [mark(each, self.watermark) if can_carry(plan.size) else each for each in pixels]
                by_stage[name] += [Image.fromarray(each) for each in pixels]
        images = by_stage[plan.stages[-1].entry.name]
        return Samples(images, [prompt for prompt, _ in jobs], [index for _, index in jobs], by_stage)

    def _draw_batch(self, plan: Plan, batch: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        """Images in [-1, 1] of every stage that runs."""
        text = pad_text([plan.texts[prompt] for prompt, _ in batch], self.device)
        negative = None if plan.negative is None else pad_text([plan.negative] * len(batch), self.device)
        drawn: dict[str, Tensor] = {}
        x_BCHW, edits = self._given(plan, len(batch)), plan.stages[0].entry.low_resolution is None
        for stage in plan.stages:
            width, height = editing.stage_size(plan.stages, plan.size, stage.entry.resolution)
            edit = None
            if plan.picture_HWC is not None and edits:
                edit = editing.edit_at(plan.picture_HWC, plan.mask_HW, (width, height), self.device)
            seeds = [(plan.seed, prompt_number(prompt), index, self.stages.index(stage)) for prompt, index in batch]
            inputs = Inputs(text, negative, x_BCHW, edit)
            x_BCHW = sample_stage(stage, plan.settings[stage.entry.name], inputs, seeds, (height, width))
            drawn[stage.entry.name] = x_BCHW
        return drawn

    def _given(self, plan: Plan, count: int) -> Tensor | None:
        """The user's own picture as the input of a super-resolution stage; None where the base runs."""
        low = plan.stages[0].entry.low_resolution
        if low is None or plan.picture_HWC is None:
            return None
        small_HWC = editing.fit(plan.picture_HWC, editing.stage_size(plan.stages, plan.size, low))
        return editing.tensor(small_HWC, self.device).expand(count, -1, -1, -1)

    def _best(self, samples: Samples, best_of: int) -> Samples:
        scores = self.scorer.similarity([np.asarray(image) for image in samples.images], samples.prompts)
        groups = scores.reshape(-1, best_of)
        return samples.take((groups.argmax(1) + np.arange(len(groups)) * best_of).tolist(), scores.tolist())

    @cached_property
    def scorer(self) -> ClipScorer:
        """The CLIP that chooses; UserError where the cascade has none."""
        if self.clip is None:
            raise UserError("best_of: this cascade has no CLIP to choose by; leave it out, or name one in cascade.json")
        return ClipScorer.load(self.clip, str(self.device))

    @cached_property
    def digest(self) -> str:
        """Of all stages' weights: 16 hex digits that say which model made an image."""
        total = hashlib.sha256()
        for stage in self.stages:
            for name, value in sorted(stage.model.state_dict().items()):
                total.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return total.hexdigest()[:16]

    def _making(self, plan: Plan, negative: str) -> dict[str, Any]:
        settings = {name: value.model_dump(mode="json") for name, value in plan.settings.items()}
        marked = self.watermark if can_carry(plan.size) else None
        return {
            "negative": negative or None,
            "seed": plan.seed,
            "size": list(plan.size),
            "model": self.digest,
            "settings": settings,
            "watermark": marked,
        }

    def _encode(self, captions: Sequence[str], overlong: Overlong) -> dict[str, np.ndarray]:
        distinct = list(dict.fromkeys(captions))
        for caption in distinct:
            if lost := self.encoder.beyond(caption):
                told = f"prompt {caption[:40]!r}... is too long: the text encoder does not read its end, {lost!r}"
                if overlong == "refuse":
                    raise UserError(f"{told}; shorten it")
                warnings.warn(told, stacklevel=3)
        return dict(zip(distinct, self.encoder.encode(distinct), strict=True))

    def span(self, start_at: str | None = None, stop_at: str | None = None) -> tuple[Stage, ...]:
        """The stages that run; None: from the first, to the last. UserError for an unknown one."""
        names = [stage.entry.name for stage in self.stages]
        ends = {"start_at": start_at or names[0], "stop_at": stop_at or names[-1]}
        for key, name in ends.items():
            if name not in names:
                raise UserError(f"{key} {name!r} is not a stage; take one of {', '.join(names)}")
        first, last = names.index(ends["start_at"]), names.index(ends["stop_at"])
        if first > last:
            raise UserError(f"start_at {start_at!r} comes after stop_at {ends['stop_at']!r}; swap them")
        return self.stages[first : last + 1]

    def _check(self, prompts: Sequence[str], counts: Mapping[str, int], settings: Mapping[str, Any]) -> None:
        if not prompts:
            raise UserError("prompts is empty; give one or more")
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"{name} {value} is too small; take 1 or more")
        names = {stage.entry.name for stage in self.stages}
        for values in settings.values():
            if isinstance(values, Mapping) and (unknown := sorted(set(values) - names)):
                raise UserError(f"stage {unknown[0]!r} is unknown; take one of {', '.join(sorted(names))}")

    def _check_image(self, stages: Sequence[Stage], image: Image.Image | None, mask: Image.Image | None) -> None:
        first = stages[0].entry
        if first.low_resolution is not None and image is None:
            raise UserError(f"start_at {first.name!r} enlarges a picture; give it as image")
        if mask is not None and image is None:
            raise UserError("mask is given without an image; give the image that it covers")
        if mask is not None and first.low_resolution is not None:
            raise UserError(f"mask with start_at {first.name!r}: inpainting begins with the base; leave out start_at")


def _chunks(jobs: Sequence[tuple[str, int]], size: int) -> list[list[tuple[str, int]]]:
    iterator = iter(jobs)
    return list(iter(lambda: list(islice(iterator, size)), []))


def _load(folder: Path, entry: StageEntry, device: str | torch.device) -> Stage:
    model, settings = load_stage(folder / entry.path, device)
    try:
        diffusion = DiffusionConfig(**settings["diffusion"])
    except ValidationError as error:
        raise UserError(
            f"stage {entry.name}: diffusion settings: {' '.join(str(error).split())}; export again"
        ) from error
    if model.config.lowres != (entry.low_resolution is not None):
        raise UserError(
            f"stage {entry.name}: low_resolution {entry.low_resolution} does not fit its U-Net; export again"
        )
    if entry.resolution % model.config.size_multiple():
        raise UserError(
            f"stage {entry.name}: resolution {entry.resolution} is not a multiple of {model.config.size_multiple()}"
        )
    return Stage(entry, model, diffusion)
