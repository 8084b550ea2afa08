"""The text towers of the small CLIP: one trained with it, or the run's frozen text encoder with a projection head.

A tower reads captions and builds the model that is trained. Shape legend: B batch, L tokens, S image size, W width of
the frozen encoder, D width of the shared embedding space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from dataprep.io.model_imports import import_open_clip
from dataprep.text.encoder import TextEncoder
from train.models.caption_tokenizer import CaptionTokenizer, pad_ids
from train.models.clip_config import ClipModelConfig
from train.models.clip_towers import build_image_tower, describe_image_tower, replace_batch_norms
from train.models.tokenizer_folder import load_tokenizer

ENCODER_FOLDER = "frozen_text"  # of an export, below its folder
PADDING = -1  # in the ids of a frozen tower, whose encoder may have no padding token
MASKED = torch.finfo(torch.bfloat16).min  # added to the logit of a masked key
START_SCALE = 1 / 0.07  # of the inverse temperature, as in CLIP


class TextTower(Protocol):
    """How captions become the second input of a CLIP."""

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Returns ids, int64 (B, context_length) on the CPU; equal rows for equal captions."""

    def read(self, ids_BL: Tensor) -> Tensor:
        """Returns what the model takes of captions beside the images, on the device of ``ids_BL``."""

    def build(self) -> nn.Module:
        """Returns a fresh CLIP: images (B, 3, S, S), what `read` gives -> unit features (B, D) twice, scale (1,)."""

    def attach(self, model: nn.Module) -> Any:
        """Returns a trained model of `build` with ``encode_image`` and ``encode_text``, which takes ids."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes what the tower is loaded from besides the model's weights."""


class TrainedText:
    """A causal transformer of open_clip, over the tokens of the encoder's tokenizer in ``folder``."""

    def __init__(self, config: ClipModelConfig, folder: str) -> None:
        self.config = config
        self.tokenize = CaptionTokenizer(load_tokenizer(folder), config.context_length)

    def read(self, ids_BL: Tensor) -> Tensor:
        """Returns the ids."""
        return ids_BL

    def build(self) -> nn.Module:
        """Returns a fresh `open_clip.CLIP`."""
        return build_open_clip(self.config, self.tokenize.vocabulary, self.tokenize.end_id, self.tokenize.pad_id)

    def attach(self, model: nn.Module) -> nn.Module:
        """Returns ``model``."""
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the tokenizer."""
        self.tokenize.tokenizer.save_pretrained(folder)


def build_open_clip(config: ClipModelConfig, vocabulary: int, eos_id: int, pad_id: int) -> nn.Module:
    """Returns a fresh `open_clip.CLIP`: (image (B, 3, S, S), token ids (B, L)) -> unit features (B, D) twice, scale."""
    import_open_clip()
    from open_clip.model import CLIP, CLIPTextCfg

    text = CLIPTextCfg(
        context_length=config.context_length,
        vocab_size=vocabulary,
        width=config.text_width,
        heads=config.text_heads,
        layers=config.text_layers,
        pool_type="eos",
        eos_id=eos_id,
        pad_id=pad_id,
    )
    # DeepSpeed broadcasts parameters as bytes, which it cannot do for a 0-dimensional tensor.
    model: nn.Module = CLIP(config.embed_dim, describe_image_tower(config), text, nonscalar_logit_scale=True)
    replace_batch_norms(model)
    return model


class FrozenText:
    """The frozen text encoder in ``folder``, or in an export of this tower, run outside of the model that is trained.

    A caption's feature is the mean of its tokens' embeddings: the head above it and the image tower learn
    (locked-text tuning, after Zhai et al. 2022, LiT, with the towers swapped).
    """

    def __init__(self, config: ClipModelConfig, folder: str) -> None:
        self.config = config
        exported = Path(folder) / ENCODER_FOLDER
        found = str(exported) if exported.is_dir() else folder
        # As in the stage embed: T5 overflows in float16.
        dtype = "bfloat16" if torch.cuda.is_available() else "float32"
        self.encoder = TextEncoder.from_folder(found, dtype, max_length=config.context_length)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Returns ids as the encoder reads them, behind them `PADDING`."""
        return pad_ids(self.encoder.tokenize(captions)[0], self.config.context_length, PADDING)

    def read(self, ids_BL: Tensor) -> Tensor:
        """Returns the mean embedding of each caption's tokens, float32 (B, W)."""
        if ids_BL.device != self.encoder.model.device:
            self.encoder.model.to(ids_BL.device)
        return pool_tokens(self.encoder.model, ids_BL)

    def build(self) -> nn.Module:
        """Returns a fresh `AlignedClip`."""
        return AlignedClip(self.config, self.encoder.dim)

    def attach(self, model: nn.Module) -> nn.Module:
        """Returns ``model`` with the encoder in front of its head."""
        assert isinstance(model, AlignedClip)
        return FrozenTextClip(model, self.encoder.model)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes encoder and tokenizer below ``folder``."""
        part = Path(folder) / ENCODER_FOLDER
        self.encoder.model.save_pretrained(part)
        self.encoder.tokenizer.save_pretrained(part)


@torch.no_grad()
def pool_tokens(encoder: Any, ids_BL: Tensor) -> Tensor:
    """Returns the mean over a caption's tokens of a transformers encoder's output, float32 (B, W); 0 for no tokens.

    Ids below zero are padding.
    """
    real_BL = ids_BL >= 0
    # Given with all its axes and as what is added to the logits: of any other form transformers asks the device
    # whether it masks anything, and waits for the answer.
    mask_B11L = torch.zeros(ids_BL.shape, device=ids_BL.device, dtype=encoder.dtype)
    mask_B11L = mask_B11L.masked_fill_(~real_BL, MASKED)[:, None, None]
    with torch.autocast(ids_BL.device.type, enabled=False):
        states_BLW = encoder(input_ids=ids_BL.clamp(min=0), attention_mask=mask_B11L).last_hidden_state.float()
    total_BW = (states_BLW * real_BL[..., None]).sum(1)
    return total_BW / real_BL.sum(1, keepdim=True).clamp(min=1)


class AlignedClip(nn.Module):
    """An image tower and a projection head over the features of a frozen text encoder, (B, ``width``)."""

    def __init__(self, config: ClipModelConfig, width: int) -> None:
        super().__init__()
        self.visual = build_image_tower(config)
        self.text_head = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.head_width),
            nn.GELU(),
            nn.Linear(config.head_width, config.embed_dim),
        )
        # One element, not none: DeepSpeed broadcasts parameters as bytes.
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(START_SCALE)))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Makes the image tower recompute its blocks in the backward pass, as open_clip's own method."""
        self.visual.set_grad_checkpointing(enable)  # type: ignore[operator]

    def forward(self, image_BCHW: Tensor, text_BW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns unit features (B, D) of both, and the inverse temperature (1,)."""
        image_BD, text_BD = self.visual(image_BCHW), self.text_head(text_BW)
        return functional.normalize(image_BD, dim=-1), functional.normalize(text_BD, dim=-1), self.logit_scale.exp()


class FrozenTextClip(nn.Module):
    """An `AlignedClip` behind its encoder, with the interface of open_clip's models."""

    def __init__(self, clip: AlignedClip, encoder: nn.Module) -> None:
        super().__init__()
        self.clip, self.encoder = clip, encoder

    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        features_BD: Tensor = self.clip.visual(image_BCHW)
        return features_BD

    def encode_text(self, ids_BL: Tensor) -> Tensor:
        """Ids of `FrozenText.tokenize` -> (B, D)."""
        features_BD: Tensor = self.clip.text_head(pool_tokens(self.encoder, ids_BL))
        return features_BD


TEXT_TOWERS: dict[str, Callable[[ClipModelConfig, str], TextTower]] = {"trained": TrainedText, "frozen": FrozenText}
