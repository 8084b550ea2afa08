"""ImageReward: a BLIP that reads the prompt with the image, and a head tuned on people's rankings (Xu et al. 2023).

The published file (arXiv 2304.05977) has BLIP's own names; they are mapped to those of transformers' modules. Sizes are
those of the tensors. Legend: B images of a batch, L tokens, D channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataprep.io.errors import UserError
from dataprep.io.storage import join, read_json
from eval.metrics.judges.base import JudgeImages
from eval.metrics.judges.preference import SCORE, ScalarJudge, refuse_model

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from eval.clip.scorer import ClipScorer
    from eval.metrics.judges.config import JudgeConfig

WEIGHTS, TEXT_CONFIG, TOKENIZERS = "ImageReward.pt", "med_config.json", ("tokenizer.json", "vocab.txt")
VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
# BLIP's names in the vision network -> those of transformers
RENAMED = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.\1."),
)
HEAD_WIDTH = 64  # channels of an attention head of a vision transformer
TOKENS = 35  # of a prompt, padding included; the rest is cut
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's output over the published data
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BATCH = 16


class ImageRewardJudge(ScalarJudge):
    """Human preference by the published weights of ImageReward."""

    title = "ImageReward"
    description = "People's preference of an image for its prompt, by a BLIP with a head: mean 0, deviation 1."
    needs = (
        "a folder with ImageReward.pt, med_config.json and the tokenizer of bert-base-uncased (vocab.txt or "
        "tokenizer.json)"
    )

    def check(self, config: JudgeConfig) -> list[str]:
        """Returns the files of the folder that count."""
        folder = Path(config.model)
        vocabularies = [name for name in TOKENIZERS if (folder / name).is_file()]
        missing = [name for name in (WEIGHTS, TEXT_CONFIG) if not (folder / name).is_file()]
        missing += [] if vocabularies else [TOKENIZERS[-1]]
        if missing:
            raise UserError(f"evaluate.judges: imagereward={config.model} has no {missing[0]}; give {self.needs}")
        return [join(config.model, name) for name in (WEIGHTS, TEXT_CONFIG, *vocabularies)]

    def load(self, config: JudgeConfig, own: ClipScorer, device: str) -> JudgeImages:
        """Loads BLIP's two networks and the head."""
        import torch

        from dataprep.io.model_imports import import_transformers

        transformers = import_transformers()
        try:
            tensors = torch.load(join(config.model, WEIGHTS), map_location="cpu", weights_only=True)
            vision = _load_vision(tensors)
            text = _load_text(tensors, read_json(join(config.model, TEXT_CONFIG)))
            head = _load_head(tensors)
            tokenizer = transformers.BertTokenizer.from_pretrained(config.model, local_files_only=True)
        except Exception as error:  # torch and transformers raise many types on a file that they cannot load
            raise refuse_model(config, error, self.needs) from error
        vision, text, head = (part.to(device).eval().requires_grad_(False) for part in (vision, text, head))
        side = vision.config.image_size

        @torch.inference_mode()
        def score(images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[Mapping[str, float]]:
            found: list[Mapping[str, float]] = []
            for start in range(0, len(images), BATCH):
                pixels = torch.stack([prepare_image(image, side) for image in images[start : start + BATCH]])
                words = tokenizer(
                    list(prompts[start : start + BATCH]),
                    padding="max_length",
                    truncation=True,
                    max_length=TOKENS,
                    return_tensors="pt",
                ).to(device)
                patches_BLD = vision(pixel_values=pixels.to(device)).last_hidden_state
                first_BD = text(
                    input_ids=words["input_ids"],
                    attention_mask=words["attention_mask"],
                    encoder_hidden_states=patches_BLD,
                    encoder_attention_mask=torch.ones(patches_BLD.shape[:2], dtype=torch.long, device=device),
                ).last_hidden_state[:, 0]
                found += [{SCORE: float(value)} for value in (head(first_BD)[:, 0] - MEAN) / STD]
            return found

        return score

    def describe(self, config: JudgeConfig) -> dict[str, Any]:
        """Returns the architecture; the size of its input is that of the published weights."""
        return {"model": "BLIP with ImageReward's head", "resolution": 224}


def prepare_image(image: np.ndarray, side: int) -> Tensor:
    """Returns uint8 RGB (H, W, 3) as BLIP's input, float32 (3, side, side): shorter side resized, centre cut out."""
    import numpy as np
    import torch
    from PIL import Image

    shown = Image.fromarray(image)
    scale = side / min(shown.size)
    width, height = (max(side, int(length * scale)) for length in shown.size)
    shown = shown.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    pixels = np.asarray(shown.crop((left, top, left + side, top + side)), np.float32) / 255
    mean, std = (np.asarray(values, np.float32) for values in (PIXEL_MEAN, PIXEL_STD))
    return torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)


def _take(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load_vision(tensors: Mapping[str, Tensor]) -> Any:
    """Returns transformers' BlipVisionModel with the weights; sizes are those of the tensors."""
    from transformers import BlipVisionConfig, BlipVisionModel

    own = _take(tensors, VISION)
    patch, width = own["patch_embed.proj.weight"].shape[-1], own["cls_token"].shape[-1]
    patches = own["pos_embed"].shape[1] - 1
    model = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=width,
            intermediate_size=own["blocks.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=len({name.split(".")[1] for name in own if name.startswith("blocks.")}),
            num_attention_heads=max(1, width // HEAD_WIDTH),
            image_size=patch * round(patches**0.5),
            patch_size=patch,
            layer_norm_eps=1e-6,
        )
    )
    model.load_state_dict({_rename(name): value for name, value in own.items()})
    return model


def _rename(name: str) -> str:
    for pattern, replacement in RENAMED:
        name, count = re.subn(pattern, replacement, name)
        if count:
            return name
    return name


def _load_text(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Any:
    """Returns transformers' BlipTextModel, whose layers also attend to the image, with the weights."""
    from transformers import BlipTextConfig, BlipTextModel

    own = {name: value for name, value in _take(tensors, TEXT).items() if not name.endswith("position_ids")}
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    given = {key: settings[key] for key in (*keys, "max_position_embeddings", "hidden_act", "layer_norm_eps")}
    width = own["encoder.layer.0.crossattention.self.key.weight"].shape[1]  # of the image's patches
    model = BlipTextModel(BlipTextConfig(**given, encoder_hidden_size=width), add_pooling_layer=False)
    model.load_state_dict(own, strict=False)
    lacking = model.state_dict().keys() - own.keys() - {"embeddings.position_ids"}
    if lacking or (more := own.keys() - model.state_dict().keys()):
        raise ValueError(f"the text network's tensors differ: {sorted(lacking or more)[0]}")
    return model


def _load_head(tensors: Mapping[str, Tensor]) -> Any:
    """Returns the head: linear layers without activations between them (dropout is for training)."""
    from torch import nn

    own = _take(tensors, HEAD)
    layers = nn.Sequential()
    for number in sorted({int(name.split(".")[0]) for name in own}):
        weight, bias = own[f"{number}.weight"], own[f"{number}.bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    return layers
