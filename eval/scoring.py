"""Scoring pairs by CLIP with no work that the score does not need: the same figures as open_clip's own calls, sooner.

A causal text tower reads captions as far as they go, not to the end of its context: what stands after the end token
cannot reach it. The last block of an image tower works on the one token that is read of it, and on a CPU all blocks use
faster kernels (`eval.blocks`). A picture stays uint8 until its batch is whole, and becomes normalised floats there.
Files are decoded in a thread while the model is at work.

Shape legend: B batch, L tokens, C channels, H W height and width, D features.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataprep.torchvision_operators import declare_torchvision_operators
from eval.blocks import Block, packs, suits

Item = TypeVar("Item")
ALIKE = 16  # captions of like length that are read together
POOLED_AT_END = ("argmax", "eos")  # the pooling of text towers whose feature is that of the end token
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def encode_text(model: Any, ids_BL: Tensor) -> Tensor:
    """``model.encode_text(ids_BL)``, (B, D): without the padding where the model's text tower allows it.

    It does where attention is causal and the feature is taken at the end token: an `open_clip.CLIP`. Others are asked
    as they are. Equal up to the rounding of floating-point sums.
    """
    if not _causal(model):
        features_BD: Tensor = model.encode_text(ids_BL)
        return features_BD
    end_B = _ends(model, ids_BL)
    order_B = end_B.argsort(stable=True)
    parts = [_to_the_end(model, ids_BL[rows], end_B[rows]) for rows in order_B.split(ALIKE)]
    return torch.cat(parts)[order_B.argsort()]


def _to_the_end(model: Any, ids_BL: Tensor, end_B: Tensor) -> Tensor:
    """Features of captions whose end tokens are at ``end_B``, read as far as the last of these."""
    length = int(end_B.max()) + 1
    ids_BL = ids_BL[:, :length]
    kind = model.transformer.get_cast_dtype()
    x_BLD = model.token_embedding(ids_BL).to(kind) + model.positional_embedding[:length].to(kind)
    x_BLD = model.ln_final(model.transformer(x_BLD, attn_mask=model.attn_mask[:length, :length]))
    x_BD = x_BLD[torch.arange(len(ids_BL), device=ids_BL.device), end_B]
    projection = model.text_projection
    if projection is not None:
        x_BD = projection(x_BD) if isinstance(projection, torch.nn.Module) else x_BD @ projection
    return x_BD


def _causal(model: Any) -> bool:
    if getattr(model, "attn_mask", None) is None or getattr(model, "text_pool_type", None) not in POOLED_AT_END:
        return False
    declare_torchvision_operators()
    import open_clip

    return isinstance(model, open_clip.CLIP)


def _ends(model: Any, ids_BL: Tensor) -> Tensor:
    """The place of each caption's end token, as open_clip finds it."""
    if model.text_pool_type == "argmax":
        return ids_BL.argmax(dim=-1)
    return (ids_BL == model.text_eos_id).int().argmax(dim=-1)


def trim(model: Any) -> Any:
    """``model`` with what its features do not need taken out, in place: they stay equal up to rounding.

    Of towers of open_clip's own blocks, whose kernels become those of `eval.blocks`; the last block of a vision
    transformer that pools its class token, as CLIP's do, works on that token alone: nothing reads the others after it.
    Anything else stays as it is.
    """
    declare_torchvision_operators()
    from open_clip.transformer import Transformer, VisionTransformer

    visual = model.visual
    if type(visual) is VisionTransformer and type(visual.transformer) is Transformer:
        pooled = (visual.pool_type, visual.attn_pool, visual.output_tokens) == ("tok", None, False)
        _lighten(visual.transformer, pooled)
    if _causal(model) and type(model.transformer) is Transformer:
        _lighten(model.transformer, False)
    return model


def _lighten(tower: Any, first_only: bool) -> None:
    blocks = tower.resblocks
    if not tower.batch_first or not all(suits(block) for block in blocks):
        return
    for index, block in enumerate(blocks):
        last = first_only and index == len(blocks) - 1
        if last or packs(block.mlp.c_fc.weight):
            blocks[index] = Block(block, last)


class Preprocess:
    """open_clip's preprocessing in two halves: a picture to a uint8 square, a batch of squares to floats.

    Together they give the very floats of open_clip's transform.
    """

    def __init__(self, size: int, mean: tuple[float, ...], std: tuple[float, ...], interpolation: str) -> None:
        self.size, self.filter = size, FILTERS[interpolation]
        self.mean_C11, self.std_C11 = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    @classmethod
    def of(cls, model: Any) -> Preprocess | None:
        """That of an open_clip model; None where its transform is of another make."""
        found = getattr(model.visual, "preprocess_cfg", None) or {}
        size = found.get("size")
        size = size[0] if isinstance(size, tuple | list) and len({*size}) == 1 else size
        if not isinstance(size, int) or found.get("interpolation") not in FILTERS:
            return None
        if found.get("resize_mode") != "shortest" or found.get("mode") != "RGB":
            return None
        return cls(size, tuple(found["mean"]), tuple(found["std"]), found["interpolation"])

    def square(self, image_HWC: np.ndarray) -> Tensor:
        """uint8 (H, W, 3) -> uint8 (size, size, 3): the shorter side to ``size``, then the middle."""
        height, width = image_HWC.shape[:2]
        picture = Image.fromarray(image_HWC)
        short, long = min(height, width), int(self.size * max(height, width) / min(height, width))
        if short != self.size:
            picture = picture.resize((self.size, long) if width == short else (long, self.size), self.filter)
        left, top = (round((side - self.size) / 2) for side in picture.size)
        picture = picture.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(picture))

    def floats(self, squares_BHWC: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), normalised; channels last in memory, as convolutions like it."""
        pixels_BCHW = squares_BHWC.permute(0, 3, 1, 2).float()
        mean_C11, std_C11 = self.mean_C11.to(pixels_BCHW.device), self.std_C11.to(pixels_BCHW.device)
        return pixels_BCHW.div_(255).sub_(mean_C11).div_(std_C11)


def ahead(items: Iterable[Item], depth: int = 64) -> Iterator[Item]:
    """``items``, made by a thread of their own, at most ``depth`` of them ahead of who takes them."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Any]] = deque(pool.submit(next, iterator, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, iterator, end))
                yield item
        finally:
            for future in waiting:
                future.cancel()
