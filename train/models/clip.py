"""A small CLIP of open_clip's modules with the text encoder's tokenizer, and its folder: clip.json, weights, tokenizer.

For runs without a pretrained CLIP. Shape legend: B batch, C channels, H W height and width, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_open_clip
from train.models.clip_config import ClipModelConfig
from train.models.end_token import describe_tokenizer, load_tokenizer

CONFIG_FILE, WEIGHTS_FILE, FORMAT = "clip.json", "model.safetensors", 1


def build_clip(config: ClipModelConfig, vocabulary: int, eos_id: int, pad_id: int) -> nn.Module:
    """Returns a fresh `open_clip.CLIP`: (image (B, 3, S, S), token ids (B, L)) -> unit features (B, D) twice, scale.

    Group norms replace batch norms, so that features depend neither on the batch nor on the number of ranks.
    """
    import_open_clip()
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
    # DeepSpeed broadcasts parameters as bytes, which it cannot do for a 0-dimensional tensor.
    model: nn.Module = CLIP(config.embed_dim, vision, text, nonscalar_logit_scale=True)
    _replace_batch_norms(model)
    return model


def _replace_batch_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = nn.GroupNorm(max(1, child.num_features // 8), child.num_features)
            norm.weight.data.copy_(child.weight.data)  # zero where open_clip zero-initialises a block
            setattr(module, name, norm)
        else:
            _replace_batch_norms(child)


def encode_tokens(tokenizer: Any, captions: Sequence[str], context_length: int) -> Tensor:
    """Returns token ids, int64 (B, context_length): padded, or cut with the end token kept."""
    encoded = tokenizer(
        list(captions), truncation=True, max_length=context_length, padding="max_length", return_tensors="pt"
    )
    ids_BL: Tensor = encoded["input_ids"]
    return ids_BL


def to_clip_range(pixels_BHWC: Tensor) -> Tensor:
    """Converts uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1], the small CLIP's input; channels last."""
    return pixels_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1


def save_clip(folder: str | Path, weights: Mapping[str, Tensor], config: ClipModelConfig, tokenizer: Any) -> None:
    """Writes a trained CLIP to a local folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: weights[name].detach().float().cpu().contiguous() for name in sorted(weights)}
    save_file(stored, folder / WEIGHTS_FILE)
    tokenizer.save_pretrained(folder)
    # Written last, so that a folder with a clip.json is complete.
    storage.write_json(str(folder / CONFIG_FILE), {"format": FORMAT, "model": config.model_dump(mode="json")})


def load_clip(folder: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, ClipModelConfig, Any]:
    """Loads model (eval mode), config and tokenizer from a local folder; UserError where a part is invalid."""
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"clip {folder}: {name} is missing; name a folder that a clip stage exported")
    settings = storage.read_json(str(folder / CONFIG_FILE))
    if settings.get("format") != FORMAT:
        raise UserError(f"clip {folder}: format {settings.get('format')!r}, this imagen-ray reads {FORMAT}")
    try:
        config = ClipModelConfig(**settings["model"])
        tokenizer = load_tokenizer(str(folder))
        model = build_clip(config, *describe_tokenizer(tokenizer))
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (KeyError, OSError, ValueError, ValidationError, SafetensorError, RuntimeError) as error:
        raise UserError(f"clip {folder}: not loadable ({' '.join(str(error).split())}); export it again") from error
    return model.to(device).eval().requires_grad_(False), config, tokenizer
