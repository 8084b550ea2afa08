"""Options of a sampling call, and the sampler settings of a stage under them."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from PIL import Image
from pydantic import ValidationError

from dataprep.io.errors import UserError
from dataprep.io.seeds import MAX_SEED
from eval.sampling.config import SamplingConfig, StageEntry

Overlong = Literal["cut", "refuse"]
Size = tuple[int, int]  # (width, height), as in PIL
SettingValue = str | int | float | Sequence[float] | None
# Field of `SamplingConfig` -> its value for all stages, or {stage name: value}; None keeps the stage's default.
SettingChanges = Mapping[str, SettingValue | Mapping[str, SettingValue]]
DEFAULT_STRENGTH = 0.7  # of image-to-image
LISTS = ("timesteps", "log_snrs")  # settings that list the evaluations, in place of `steps` and `spacing`


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """All that is asked of a cascade besides the prompts.

    Attributes:
        num: images per prompt.
        seed: an image is a function of prompt, seed and index.
        negative: prompt to guide away from, in place of the unconditional prediction.
        image: image to start from. Image-to-image with ``strength`` (0.7 by default); inpainting with ``mask``; input
            of the super-resolution stage ``start_at``.
        mask: white pixels are regenerated; the size of ``image``.
        variations_of: image whose CLIP embedding takes the place of a predicted one: its variations. The prompt is then
            given to the stages alone, and may be empty.
        to_image: with ``variations_of``: the ``num`` images go from that image to this one, with the same noise.
        to_prompt: as ``to_image``, to what the prior predicts for a caption.
        size: (width, height) of the last stage that runs; default: its square, or the nearest size of ``image``'s
            aspect.
        start_at: name of the first stage to run; None: the base.
        stop_at: name of the last stage to run; None: the last.
        best_of: candidates per image, of which the cascade's CLIP picks the best.
        overlong: prompts beyond the limit of the text encoder are cut, with a warning, or refused.
        batch_size: images per batch.
        attention: record where each stage looks for each token of the prompt (`Samples.attention`).
        changes: sampler settings that differ from the defaults of the stages.
    """

    num: int = 1
    seed: int = 0
    negative: str = ""
    image: Image.Image | None = None
    mask: Image.Image | None = None
    variations_of: Image.Image | None = None
    to_image: Image.Image | None = None
    to_prompt: str = ""
    size: Size | None = None
    start_at: str | None = None
    stop_at: str | None = None
    best_of: int = 1
    overlong: Overlong = "cut"
    batch_size: int = 16
    attention: bool = False
    changes: SettingChanges = field(default_factory=dict)

    @property
    def interpolates(self) -> bool:
        """Whether the images go from one embedding to another."""
        return self.to_image is not None or bool(self.to_prompt)

    @classmethod
    def from_keywords(cls, **keywords: Any) -> SamplingOptions:
        """Builds options from their fields and from fields of `SamplingConfig`, which become ``changes``.

        Raises UserError for any other keyword.
        """
        own = {item.name for item in fields(cls)} - {"changes"}
        changes = {name: value for name, value in keywords.items() if name not in own}
        _check_setting_names(changes)
        return cls(**{name: value for name, value in keywords.items() if name in own}, changes=changes)


def override_sampling(entry: StageEntry, changes: SettingChanges) -> SamplingConfig:
    """Returns the stage's sampler settings under ``changes``.

    Another number, kind or list of steps replaces those that the stage lists. Raises UserError for an unknown setting,
    naming the nearest one, for an invalid value, and for another one than a distilled stage has learned.
    """
    _check_setting_names(changes)
    values = entry.sampling.model_dump()
    asked = {key: value.get(entry.name) if isinstance(value, Mapping) else value for key, value in changes.items()}
    own = {key: chosen for key, chosen in asked.items() if chosen is not None}
    for key in own.keys() & entry.distilled:
        if (chosen := own.pop(key)) != values[key]:
            raise UserError(
                f"{key} {chosen}: stage {entry.name} is distilled to {key} {values[key]}, and its images are "
                "of no worth with another; leave it out"
            )
    if not own.keys().isdisjoint(("steps", "spacing", *LISTS)):
        values |= dict.fromkeys(LISTS)
    for key, chosen in own.items():
        values[key] = float(chosen) if isinstance(values[key], float) and isinstance(chosen, int) else chosen
    try:
        return SamplingConfig(**values)
    except ValidationError as error:
        reason = error.errors()[0]
        named = f"{reason['loc'][0]} {reason['input']}: " if reason["loc"] else ""
        raise UserError(f"{named}{reason['msg']}") from error


def check_options(options: SamplingOptions, first: StageEntry, stage_names: Iterable[str]) -> None:
    """Raises UserError for a count below 1, an unknown stage name, and images that do not fit the ``first`` stage."""
    for name in ("num", "best_of", "batch_size"):
        if (value := getattr(options, name)) < 1:
            raise UserError(f"{name} {value} is too small; take 1 or more")
    if not 0 <= options.seed <= MAX_SEED:  # beyond, seeds would have the images of others
        raise UserError(f"seed {options.seed} is out of range; take one of 0 to {MAX_SEED}")
    for values in options.changes.values():
        if isinstance(values, Mapping) and (unknown := sorted(set(values).difference(stage_names))):
            raise UserError(f"stage {unknown[0]!r} is unknown; take one of {', '.join(sorted(stage_names))}")
    if first.low_resolution is not None and options.image is None:
        raise UserError(f"start_at {first.name!r} enlarges an image; give it as image")
    if options.mask is not None and options.image is None:
        raise UserError("mask is given without an image; give the image that it covers")
    if options.mask is not None and first.low_resolution is not None:
        raise UserError(f"mask with start_at {first.name!r}: inpainting begins with the base; leave out start_at")
    _check_variations(options)


def _check_variations(options: SamplingOptions) -> None:
    """Raises UserError for options of variations and interpolation that do not go together."""
    if options.variations_of is not None and options.best_of > 1:
        raise UserError(
            f"best_of {options.best_of}: CLIP chooses by the prompt, and variations are of an image; leave it out"
        )
    if options.interpolates:
        given = "to_image" if options.to_image is not None else f"to_prompt {options.to_prompt!r}"
        if options.variations_of is None:
            raise UserError(
                f"{given}: is the end of an interpolation; give the image that it begins with: variations_of"
            )
        if options.to_image is not None and options.to_prompt:
            raise UserError(
                f"to_prompt {options.to_prompt!r}: an interpolation has one end; leave out to_image, or this"
            )
        if options.num < 2:
            raise UserError(f"num {options.num}: an interpolation has two ends; take 2 or more")


def describe_image(image: Image.Image) -> str:
    """Returns what identifies an image in metadata: a hash of its pixels."""
    return f"image {hashlib.sha256(image.tobytes()).hexdigest()[:16]}"


def _check_setting_names(names: Iterable[str]) -> None:
    known = SamplingConfig.model_fields
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"take one of {', '.join(known)}"
            raise UserError(f"setting {name!r} is unknown; {hint}")
