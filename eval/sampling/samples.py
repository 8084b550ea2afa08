"""Result of a sampling call: images, and how each was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from eval.sampling.attention import AttentionMaps


@dataclass(frozen=True)
class Samples:
    """Generated images, prompt by prompt, with the prompt and the index of each.

    An index counts the images of one prompt and seed; with ``best_of`` only the indices of the chosen candidates occur.
    """

    images: list[Image.Image]
    prompts: list[str]
    indices: list[int]
    by_stage: dict[str, list[Image.Image]]  # images of every stage that ran; those of the last one are `images`
    scores: list[float] | None = None  # CLIP scores, with best_of
    making: Mapping[str, Any] = field(default_factory=dict)  # shared by all images: seed, model, settings
    expanded: Mapping[str, str] = field(default_factory=dict)  # prompt -> what was drawn in its place, if written out
    # Where the stages looked, by stage and image; {} unless asked for.
    attention: Mapping[str, Sequence[AttentionMaps]] = field(default_factory=dict)

    def info(self, number: int) -> dict[str, Any]:
        """Returns the metadata of image ``number``, as `eval.sampling.png_metadata.save_png` writes it."""
        score = None if self.scores is None else round(self.scores[number], 4)
        prompt = self.prompts[number]
        drawn = {"expanded": self.expanded[prompt]} if prompt in self.expanded else {}
        return {"prompt": prompt, **drawn, "index": self.indices[number], "score": score, **self.making}

    def select(self, numbers: Sequence[int], scores: Sequence[float]) -> Samples:
        """Returns the images ``numbers`` alone, with their scores out of ``scores`` of all images."""
        return replace(
            self,
            images=[self.images[i] for i in numbers],
            prompts=[self.prompts[i] for i in numbers],
            indices=[self.indices[i] for i in numbers],
            by_stage={name: [images[i] for i in numbers] for name, images in self.by_stage.items()},
            scores=[scores[i] for i in numbers],
            attention={name: [maps[i] for i in numbers] for name, maps in self.attention.items()},
        )
