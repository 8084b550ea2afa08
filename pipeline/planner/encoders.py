"""Cost of the frozen models: FLOPs per token of the text encoder, FLOPs per pair of CLIP, size of the captioner.

A model trained in the run and a local folder tell their sizes. Nothing is downloaded for a hub name: known sizes are
counted, any other counts as the largest, and the plan says so.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dataprep.io.model_imports import declare_torchvision_operators, import_transformers_vision
from dataprep.io.pipeline_folder import encoder_folders
from eval.captioning.config import CaptionConfig
from eval.captioning.model_folder import check_model_folder
from pipeline.stages.clip import ClipConfig
from pipeline.stages.text_encoder import EncoderConfig, locate_encoder
from train.models.clip_text import AlignedClip, build_open_clip

# d_model, d_ff, layers, heads x width of a head, of the encoders of T5 v1.1, Flan-T5 and mT5 (their config.json).
T5_SIZES = {
    "small": (512, 1024, 8, 384),
    "base": (768, 2048, 12, 768),
    "large": (1024, 2816, 24, 1024),
    "xl": (2048, 5120, 24, 2048),
    "xxl": (4096, 10240, 24, 4096),
}
VOCABULARY = 32_128
PROBE_TOKENS = 32
SIZE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)([bm])(?![a-z])")  # as in Qwen2-VL-2B-Instruct
UNITS = {"b": 1e9, "m": 1e6}
LARGE_CAPTIONER = 7e9  # parameters


@dataclass(frozen=True)
class TextCost:
    """A frozen text encoder."""

    name: str
    width: int
    hidden: int
    layers: int
    inner: int  # heads x width of a head
    parameters: int
    flops_per_token: float
    note: str


@dataclass(frozen=True)
class ClipCost:
    """A CLIP that scores pairs."""

    name: str
    model: str  # open_clip name of the counted model; empty: trained in the run
    width: int
    flops_per_pair: float


@dataclass(frozen=True)
class CaptionerCost:
    """A frozen vision-language model that writes captions."""

    name: str
    parameters: float
    note: str


def estimate_captioner_cost(config: CaptionConfig) -> CaptionerCost | None:
    """Returns the size of the model that writes captions; None if none are written.

    Raises UserError for a folder that is not of such a model.
    """
    if config.model is None:
        return None
    if Path(config.model).exists():
        check_model_folder(config.model)
        transformers = import_transformers_vision()
        described = transformers.AutoConfig.from_pretrained(config.model)
        with torch.device("meta"):
            model = transformers.AutoModelForImageTextToText.from_config(described)
        return CaptionerCost(config.model, float(model.num_parameters()), "the folder's config.json")
    size = SIZE.search(config.model.rpartition("/")[2].lower())
    if size is None:
        note = "unknown size, counted as 7 billion parameters; use a local folder for its real size"
        return CaptionerCost(config.model, LARGE_CAPTIONER, note)
    return CaptionerCost(config.model, float(size[1]) * UNITS[size[2]], "by its name")


def estimate_text_cost(config: EncoderConfig) -> TextCost:
    """Returns the cost of the text encoder, counted from its sizes."""
    if config.pretrain is not None:
        own = config.pretrain
        sizes = (own.d_model, own.d_ff, own.layers, own.d_model, own.vocabulary)
        return _count_encoder("trained here", *sizes, "its own sizes", gated=own.task == "t5")
    name = locate_encoder(str(config.model))
    described = Path(encoder_folders(name)[0]) / "config.json"
    if described.is_file():
        read = json.loads(described.read_text())
        width = read.get("d_model") or read["hidden_size"]
        inner = read.get("num_heads", 1) * read["d_kv"] if "d_kv" in read else width
        hidden = read.get("d_ff") or read.get("intermediate_size", 4 * width)
        layers = read.get("num_layers") or read.get("num_hidden_layers", 12)
        sizes = (width, hidden, layers, inner, read.get("vocab_size", VOCABULARY))
        gated = "d_ff" in read and read.get("feed_forward_proj", "relu").startswith("gated")
        return _count_encoder(name, *sizes, "the folder's config.json", gated)
    size = next((size for size in sorted(T5_SIZES, key=len, reverse=True) if name.lower().endswith(size)), None)
    note = "by its name" if size else "unknown size, counted as T5-XXL; use a local folder for its real size"
    return _count_encoder(name, *T5_SIZES[size or "xxl"], VOCABULARY, note)


def _count_encoder(
    name: str, width: int, hidden: int, layers: int, inner: int, vocabulary: int, note: str, gated: bool = True
) -> TextCost:
    """Returns the cost of an encoder: 6 matrices per layer, 7 with ``gated`` feed-forward layers, and attention."""
    matrices = layers * (4 * width * inner + (3 if gated else 2) * width * hidden)
    attention = layers * 4 * inner * PROBE_TOKENS
    parameters = matrices + vocabulary * width
    return TextCost(name, width, hidden, layers, inner, parameters, 2.0 * matrices + attention, note)


def estimate_clip_cost(config: ClipConfig, text: TextCost) -> ClipCost:
    """Returns the cost of CLIP, counted by running it over one pair on the meta device.

    ``text`` is the run's text encoder, which a CLIP trained here with ``text_tower: frozen`` reads captions with.
    """
    own = config.train
    if own is None:
        return _open_clip(str(config.model))
    with torch.device("meta"):
        if own.text_tower == "trained":
            model = build_open_clip(own, VOCABULARY, 1, 0)
            return _count("trained here", "", model, own.image_size, own.context_length)
        aligned = AlignedClip(own, text.width)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        aligned(torch.zeros(1, 3, own.image_size, own.image_size), torch.zeros(1, text.width))
    flops = counter.get_total_flops() + own.context_length * text.flops_per_token
    return ClipCost("trained here", "", own.embed_dim, float(flops))


@cache
def _open_clip(name: str) -> ClipCost:
    declare_torchvision_operators()
    import open_clip

    known = name if open_clip.get_model_config(name) else "ViT-L-14"
    sizes = open_clip.get_model_config(known)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # silences the warning about missing weights
    try:
        with torch.device("meta"):
            model = open_clip.create_model(known, pretrained=None, device="meta", pretrained_hf=False)
    finally:
        root.setLevel(level)
    label = name if known == name else f"{name} (counted as {known})"
    side = sizes["vision_cfg"].get("image_size", 224)
    return _count(
        label, known, model, side if isinstance(side, int) else side[0], sizes["text_cfg"].get("context_length", 77)
    )


def _count(label: str, name: str, model: Any, side: int, length: int) -> ClipCost:
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        width = model.encode_image(torch.zeros(1, 3, side, side)).shape[-1]
        model.encode_text(torch.ones(1, length, dtype=torch.long))
    return ClipCost(label, name, int(width), float(counter.get_total_flops()))
