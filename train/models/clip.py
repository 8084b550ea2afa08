"""A small CLIP of open_clip's own parts, with a T5-style tokenizer, and its folder: clip.json, weights, tokenizer.

Used where no pretrained CLIP is to be had. Shape legend: B batch, C channels, H W height and width, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from dataprep import storage
from dataprep.schema import Config, UserError
from dataprep.torchvision_operators import declare_torchvision_operators

CONFIG_FILE, WEIGHTS_FILE, FORMAT = "clip.json", "model.safetensors", 1


class ClipModelConfig(Config):
    """Sizes of the two towers: a ResNet with attention pooling (RN50's kind) and a causal transformer."""

    image_size: int = Field(64, ge=32, multiple_of=32, description="height and width of the images")
    embed_dim: int = Field(64, ge=8, description="width of the shared space")
    vision_width: int = Field(8, ge=8, multiple_of=8, description="channels of the first residual stage")
    vision_blocks: tuple[int, int, int, int] = Field((1, 1, 1, 1), strict=False, description="residual blocks a stage")
    text_width: int = Field(96, ge=8, description="width of the text tower")
    text_layers: int = Field(1, ge=1, description="layers of the text tower")
    text_heads: int = Field(3, ge=1, description="attention heads of the text tower")
    context_length: int = Field(32, ge=4, description="tokens of a caption, end token included; longer ones are cut")


def build_clip(config: ClipModelConfig, vocabulary: int, eos_id: int, pad_id: int) -> nn.Module:
    """A fresh `open_clip.CLIP`: (image (B, 3, S, S), token ids (B, L)) -> unit features (B, D) twice, and the scale.

    Batch norms are replaced by group norms: a sample's features do not depend on its batch, so neither on the ranks.
    """
    declare_torchvision_operators()
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(
        layers=config.vision_blocks, width=config.vision_width, head_width=32, image_size=config.image_size
    )
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
    # DeepSpeed broadcasts parameters as bytes, which a tensor without axes cannot be viewed as.
    model: nn.Module = CLIP(config.embed_dim, vision, text, nonscalar_logit_scale=True)
    _group_norms(model)
    return model


def _group_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = nn.GroupNorm(max(1, child.num_features // 8), child.num_features)
            norm.weight.data.copy_(child.weight.data)  # zero where open_clip silences a block at first
            setattr(module, name, norm)
        else:
            _group_norms(child)


def token_ids(tokenizer: Any, captions: Sequence[str], context_length: int) -> Tensor:
    """Token ids, int64 (B, context_length), end token kept where a caption is cut, filled up with padding."""
    coded = tokenizer(
        list(captions), truncation=True, max_length=context_length, padding="max_length", return_tensors="pt"
    )
    ids_BL: Tensor = coded["input_ids"]
    return ids_BL


def to_clip_range(pixels_BHWC: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1], what the small CLIP sees; channels last in memory."""
    return pixels_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1


def save_clip(folder: str | Path, weights: Mapping[str, Tensor], config: ClipModelConfig, tokenizer: Any) -> None:
    """Writes a trained CLIP to a local folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: weights[name].detach().float().cpu().contiguous() for name in sorted(weights)}
    save_file(stored, folder / WEIGHTS_FILE)
    tokenizer.save_pretrained(folder)
    # Last, so that a folder with a clip.json is whole.
    storage.write_json(str(folder / CONFIG_FILE), {"format": FORMAT, "model": config.model_dump(mode="json")})


def load_clip(folder: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, ClipModelConfig, Any]:
    """Model in eval mode, its config and its tokenizer, from a local folder; UserError where a part is bad."""
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"clip {folder}: {name} is missing; name a folder that a clip stage exported")
    settings = storage.read_json(str(folder / CONFIG_FILE))
    if settings.get("format") != FORMAT:
        raise UserError(f"clip {folder}: format {settings.get('format')!r}, this imagen-ray reads {FORMAT}")
    try:
        config = ClipModelConfig(**settings["model"])
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        model = build_clip(config, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (KeyError, OSError, ValueError, ValidationError, SafetensorError, RuntimeError) as error:
        raise UserError(f"clip {folder}: not loadable ({' '.join(str(error).split())}); export it again") from error
    return model.to(device).eval().requires_grad_(False), config, tokenizer
