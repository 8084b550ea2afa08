"""CLIP inference without the work that a score does not need. Equal to open_clip's own calls up to rounding.

A causal text tower reads captions up to their end token: padding after it cannot influence the feature. The last block
of an image tower computes the pooled token alone, and on a CPU all blocks use faster kernels (`eval.clip.cpu_blocks`).
Images stay uint8 until their batch is complete and are normalised on the device.

Shape legend: B batch, L tokens, C channels, H W height and width, D features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataprep.images.resize import resize_then_crop
from dataprep.io.device_copy import send
from dataprep.io.model_imports import import_open_clip
from eval.clip.cpu_blocks import CpuBlock, can_pack, is_replaceable
from train.models.clip_text import PADDING, FrozenTextClip

GROUP = 16  # captions of similar length per forward pass
POOLED_AT_END = ("argmax", "eos")  # text pooling that takes the feature of the end token
RESAMPLINGS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def encode_captions(model: Any, ids_BL: Tensor, device: str = "cpu") -> Tensor:
    """Returns ``model.encode_text(ids_BL)``, (B, D), up to rounding; skips padding if the text tower allows it.

    That takes causal attention and the feature of the end token, as in `open_clip.CLIP`. Of the ids of a frozen text
    encoder (`train.models.clip_text`) the places are cut that are padding in all captions. Other towers run unchanged.
    ``ids_BL`` are on the CPU, where the lengths are found without waiting for the ``device`` of the model.
    """
    if not _is_causal(model):
        if isinstance(model, FrozenTextClip):
            ids_BL = ids_BL[:, (ids_BL != PADDING).any(0)]
        features_BD: Tensor = model.encode_text(send(ids_BL, device))
        return features_BD
    end_B = _find_ends(model, ids_BL)
    order_B = end_B.argsort(stable=True)
    parts = [_encode_group(model, ids_BL[rows], end_B[rows], device) for rows in order_B.split(GROUP)]
    return torch.cat(parts)[send(order_B.argsort(), device)]


def _encode_group(model: Any, ids_BL: Tensor, end_B: Tensor, device: str) -> Tensor:
    """Returns the features of captions with end tokens at ``end_B``, computed up to the last of these."""
    length = int(end_B.max()) + 1
    ids_BL, end_B = send(ids_BL[:, :length], device), send(end_B, device)
    kind = model.transformer.get_cast_dtype()
    x_BLD = model.token_embedding(ids_BL).to(kind) + model.positional_embedding[:length].to(kind)
    x_BLD = model.ln_final(model.transformer(x_BLD, attn_mask=model.attn_mask[:length, :length]))
    x_BD = x_BLD[torch.arange(len(ids_BL), device=ids_BL.device), end_B]
    projection = model.text_projection
    if projection is not None:
        x_BD = projection(x_BD) if isinstance(projection, torch.nn.Module) else x_BD @ projection
    return x_BD


def _is_causal(model: Any) -> bool:
    if getattr(model, "attn_mask", None) is None or getattr(model, "text_pool_type", None) not in POOLED_AT_END:
        return False
    return isinstance(model, import_open_clip().CLIP)


def _find_ends(model: Any, ids_BL: Tensor) -> Tensor:
    """Returns the position of each caption's end token, as open_clip finds it."""
    if model.text_pool_type == "argmax":
        return ids_BL.argmax(dim=-1)
    return (ids_BL == model.text_eos_id).int().argmax(dim=-1)


def trim_model(model: Any) -> Any:
    """Removes work that the features do not need, in place; they stay equal up to rounding. Returns ``model``.

    Towers of open_clip's own blocks get the kernels of `eval.clip.cpu_blocks`. The last block of a vision transformer
    that pools its class token, as in CLIP, computes that token alone. Any other part stays as it is.
    """
    import_open_clip()
    from open_clip.transformer import Transformer, VisionTransformer

    visual = model.visual
    if type(visual) is VisionTransformer and type(visual.transformer) is Transformer:
        pooled = (visual.pool_type, visual.attn_pool, visual.output_tokens) == ("tok", None, False)
        _replace_blocks(visual.transformer, pooled)
    if _is_causal(model) and type(model.transformer) is Transformer:
        _replace_blocks(model.transformer, False)
    return model


def _replace_blocks(tower: Any, first_only: bool) -> None:
    blocks = tower.resblocks
    if not tower.batch_first or not all(is_replaceable(block) for block in blocks):
        return
    for index, block in enumerate(blocks):
        last = first_only and index == len(blocks) - 1
        if last or can_pack(block.mlp.c_fc.weight):
            blocks[index] = CpuBlock(block, last)


class Preprocess:
    """open_clip's preprocessing in two steps: an image to a uint8 square, a batch of squares to floats.

    Together they give exactly the floats of open_clip's transform.
    """

    def __init__(self, size: int, mean: tuple[float, ...], std: tuple[float, ...], interpolation: str) -> None:
        self.size, self.resampling = size, RESAMPLINGS[interpolation]
        self.mean_C11, self.std_C11 = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    @classmethod
    def from_model(cls, model: Any) -> Preprocess | None:
        """Returns that of an open_clip model; None if its transform is of another form."""
        found = getattr(model.visual, "preprocess_cfg", None) or {}
        size = found.get("size")
        size = size[0] if isinstance(size, tuple | list) and len({*size}) == 1 else size
        if not isinstance(size, int) or found.get("interpolation") not in RESAMPLINGS:
            return None
        if found.get("resize_mode") != "shortest" or found.get("mode") != "RGB":
            return None
        return cls(size, tuple(found["mean"]), tuple(found["std"]), found["interpolation"])

    def to_square(self, image_HWC: np.ndarray) -> Tensor:
        """Maps uint8 (H, W, 3) to uint8 (size, size, 3): the shorter side resized to ``size``, then a centre crop."""
        return torch.from_numpy(resize_then_crop(image_HWC, self.size, self.resampling))

    def to_floats(self, squares_BHWC: Tensor) -> Tensor:
        """Maps uint8 (B, H, W, 3) to normalised float32 (B, 3, H, W), channels last in memory: faster convolutions."""
        pixels_BCHW = squares_BHWC.permute(0, 3, 1, 2).float()
        mean_C11, std_C11 = self.mean_C11.to(pixels_BCHW.device), self.std_C11.to(pixels_BCHW.device)
        return pixels_BCHW.div_(255).sub_(mean_C11).div_(std_C11)
