"""Cosine similarity of images and captions by CLIP, for filtering pairs and for judging samples."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dataprep.images.resize import fit_square
from dataprep.io.device_copy import HostCopy, send
from dataprep.io.device_settings import configure_device
from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_open_clip
from dataprep.io.storage import exists, join, local_folder
from eval.clip.fast_inference import Preprocess, encode_captions, trim_model
from train.models.clip import CONFIG_FILE, load_clip, to_clip_range

CPU_BATCH = 16  # images per forward pass on a CPU: their activations stay in its caches
ClipSpec = str | Mapping[str, str | None]
# Names that open_clip fetches with their weights.
SELF_CONTAINED = ("hf-hub:", "local-dir:")


class ClipScorer:
    """A frozen CLIP. Images are uint8 (H, W, 3) of any size, features float32 of unit length (D)."""

    def __init__(
        self,
        model: Any,
        preprocess: Callable[[np.ndarray], Tensor],
        tokenize: Callable[[Sequence[str]], Tensor],
        device: str = "cpu",
        batch_size: int = 64,
        finish: Callable[[Tensor], Tensor] = lambda pixels: pixels,
    ) -> None:
        """``preprocess`` maps an image to a tensor, ``finish`` a stack of these to the model's input."""
        self.model, self.preprocess, self.tokenize, self.finish = model, preprocess, tokenize, finish
        self.device, self.batch_size = device, batch_size

    @classmethod
    def load(cls, spec: ClipSpec, device: str = "cpu", batch_size: int = 64) -> ClipScorer:
        """Loads a CLIP that the clip stage exported, or one of open_clip.

        ``spec`` is a folder (any fsspec URL), an ``hf-hub:`` or ``local-dir:`` name, or ``model`` and ``pretrained``:
        an open_clip architecture and, for it, a tag or a local weights file.
        Raises UserError for one that cannot be loaded.
        """
        name, pretrained = _split_spec(spec)
        check_spec(name, pretrained)
        configure_device(device)
        if not name.startswith(SELF_CONTAINED):
            name = local_folder(name)
        if (Path(name) / CONFIG_FILE).is_file():
            model, config, text = load_clip(name, device)
            fit = lambda image: torch.from_numpy(fit_square(image, config.image_size))  # noqa: E731
            return cls(model, fit, text.tokenize, device, batch_size, to_clip_range)
        open_clip = import_open_clip()
        try:
            # OpenAI's weights were trained with QuickGELU; with another activation open_clip only warns.
            quick = bool((open_clip.get_pretrained_cfg(name, pretrained or "") or {}).get("quick_gelu"))
            model, _, transform = open_clip.create_model_and_transforms(
                name, pretrained=pretrained, device=device, force_quick_gelu=quick
            )
            tokenizer = open_clip.get_tokenizer(name)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"clip.model={name}: cannot be loaded ({reason}); check name and weights") from error
        trim_model(model.eval().requires_grad_(False))
        if steps := Preprocess.from_model(model):
            return cls(model, steps.to_square, tokenizer, device, batch_size, steps.to_floats)
        return cls(model, lambda image: transform(Image.fromarray(image)), tokenizer, device, batch_size)

    def image_features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Returns unit vectors (N, D)."""
        parts = [
            self.encode_images(torch.stack([self.preprocess(image) for image in part]))
            for part in batched(images, self.image_batch)
        ]
        return join_features([part.wait() for part in parts])

    def text_features(self, captions: Sequence[str]) -> np.ndarray:
        """Returns unit vectors (N, D); repeated captions are encoded once."""
        tokens, place = self.tokenize_distinct(captions)
        parts = [self.encode_tokens(ids_BL) for ids_BL in tokens]
        return join_features([part.wait() for part in parts])[place]

    @property
    def image_batch(self) -> int:
        """Images per forward pass."""
        return min(self.batch_size, CPU_BATCH) if self.device == "cpu" else self.batch_size

    def tokenize_distinct(self, captions: Sequence[str]) -> tuple[list[Tensor], list[int]]:
        """Returns batches of token ids of the distinct captions, and the row of each caption among these."""
        distinct = list(dict.fromkeys(captions))
        distinct.sort(key=len)  # batches of similar length, whose padding is skipped
        place = {caption: index for index, caption in enumerate(distinct)}
        tokens = [self.tokenize(list(part)) for part in batched(distinct, self.batch_size)]
        return tokens, [place[caption] for caption in captions]

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> HostCopy:
        """Starts encoding one batch of what ``preprocess`` gave, stacked; unit vectors (B, D)."""
        with self._half_precision():
            return self._finish(self.model.encode_image(self.finish(send(pixels, self.device))))

    @torch.inference_mode()
    def encode_tokens(self, ids_BL: Tensor) -> HostCopy:
        """Starts encoding one batch of captions that ``tokenize`` gave; unit vectors (B, D)."""
        with self._half_precision():
            return self._finish(encode_captions(self.model, ids_BL, self.device))

    def _finish(self, features_BD: Tensor) -> HostCopy:
        return HostCopy(functional.normalize(features_BD.float(), dim=-1))

    def _half_precision(self) -> torch.autocast:
        """On a GPU, as in open_clip's README."""
        return torch.autocast("cuda", torch.float16, enabled=self.device.startswith("cuda"))

    @cached_property
    def dim(self) -> int:
        """D, found by encoding a black image."""
        return int(self.image_features([np.zeros((8, 8, 3), np.uint8)]).shape[1])

    def similarity(self, images: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
        """Returns the cosine of image i and caption i, float32 (N,)."""
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} images for {len(captions)} captions")
        if not len(images):
            return np.zeros(0, np.float32)
        return np.einsum("nd,nd->n", self.image_features(images), self.text_features(captions))


def batched(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yields ``items`` in slices of ``size``."""
    return (items[start : start + size] for start in range(0, len(items), size))


def join_features(parts: Sequence[Tensor]) -> np.ndarray:
    """Returns the rows of all parts, in order, (N, D)."""
    return np.concatenate([part.numpy() for part in parts]) if parts else np.zeros((0, 0), np.float32)


def check_spec(model: str, pretrained: str | None) -> None:
    """Raises UserError unless ``model`` and ``pretrained`` name a trained CLIP; loads no weights."""
    if model.startswith(SELF_CONTAINED) or exists(join(model, CONFIG_FILE)):
        return
    if "/" in model or Path(model).is_dir():
        raise UserError(
            f"clip.model={model}: no folder with a {CONFIG_FILE}, and no run; make it first, or give an open_clip name"
        )
    open_clip = import_open_clip()
    known = open_clip.list_models()
    if model not in known:
        near = ", ".join(difflib.get_close_matches(model, known, n=3)) or "ViT-B-32, ViT-L-14"
        raise UserError(f"clip.model={model}: not an open_clip model; did you mean {near}?")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None:
        raise UserError(f"clip.pretrained: missing; {model} needs trained weights: a file, or {', '.join(tags[:4])}")
    if pretrained not in tags and not Path(pretrained).is_file():
        raise UserError(f"clip.pretrained={pretrained}: neither a file nor a tag of {model} ({', '.join(tags[:6])})")


def _split_spec(spec: ClipSpec) -> tuple[str, str | None]:
    if isinstance(spec, str):
        return spec, None
    name = spec.get("model")
    if not name:
        raise UserError(f"clip: {dict(spec)} names no model; set clip.model or clip.train")
    return name, spec.get("pretrained")
