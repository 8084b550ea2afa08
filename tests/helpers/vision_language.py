"""Tiny untrained models of transformers' own classes that see images and write, or write alone, in their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from dataprep.io.model_imports import import_transformers_vision

SPECIAL = ("<pad>", "</s>", "<unk>", "<s>", "<image>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
PLAIN = ("user", ":", ".", "describe", "caption", "a", "red", "blue", "house", "tree", "cat", "on", "the", "left")
WORDS = [*SPECIAL, *PLAIN]
CHAT = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %} {{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
)
TEXT_CHAT = "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} {% endfor %}"


def make_tokenizer(image: str) -> Any:
    transformers = import_transformers_vision()
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens={"image_token": image}, **names
    )


def save_model(model: Any, folder: Path | str) -> None:
    """Saves a model that writes words alone, so that an answer has as many as it may have tokens."""
    silent = [*range(len(SPECIAL)), WORDS.index(":"), WORDS.index(".")]
    config = model.generation_config
    config.eos_token_id, config.pad_token_id, config.suppress_tokens = 1, 0, silent
    model.save_pretrained(folder)


TEXT = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
TEXT |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}


def save_llava(folder: Path, chat: bool = True, seed: int = 0) -> str:
    """Saves a LLaVA (CLIP's vision, Llama's text) with 4 tokens per image; returns the folder."""
    transformers = import_transformers_vision()
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=16, patch_size=8, **vision),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=WORDS.index("<image>"),
        vision_feature_layer=-1,
    )
    torch.manual_seed(seed)
    model = transformers.LlavaForConditionalGeneration(config)
    save_model(model, folder)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = transformers.LlavaProcessor(
        images,
        make_tokenizer("<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>") if chat else None,
    )
    processor.save_pretrained(folder)
    return str(folder)


def save_qwen(folder: Path | str, seed: int = 0) -> str:
    """Saves a Qwen2-VL, whose images have as many tokens as their size asks for; returns the folder."""
    transformers = import_transformers_vision()
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16, "mlp_ratio": 2, "patch_size": 8}
    tokens = {"vision_start_token_id": 5, "vision_end_token_id": 6, "image_token_id": 4, "video_token_id": 7}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = transformers.Qwen2VLConfig(
        text_config=TEXT | {"rope_parameters": rope}, vision_config=vision | {"spatial_merge_size": 2}, **tokens
    )
    torch.manual_seed(seed)
    model = transformers.Qwen2VLForConditionalGeneration(config)
    save_model(model, folder)
    sizes = {"patch_size": 8, "merge_size": 2, "min_pixels": 16 * 16, "max_pixels": 32 * 32}
    chat = CHAT.replace("IMAGE", "<|vision_start|> <image> <|vision_end|>")
    processor = transformers.Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessor(**sizes),
        make_tokenizer("<image>"),
        transformers.Qwen2VLVideoProcessor(**sizes),
        chat_template=chat,
    )
    processor.save_pretrained(folder)
    return str(folder)


def save_llama(folder: Path, chat: bool = True, seed: int = 0) -> str:
    """Saves a Llama, which reads and writes text alone; returns the folder."""
    transformers = import_transformers_vision()
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))
    save_model(model, folder)
    tokenizer = make_tokenizer("<image>")
    tokenizer.chat_template = TEXT_CHAT if chat else None
    tokenizer.save_pretrained(folder)
    return str(folder)
