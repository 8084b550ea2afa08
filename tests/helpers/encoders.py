"""Tiny untrained text encoders in transformers' layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from dataprep.io.model_imports import import_transformers

WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "circle", "square", "left", "of")
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
GPT = {"n_embd": 16, "n_layer": 1, "n_head": 2}


def save_encoder(folder: Path, kind: str, words: tuple[str, ...] = WORDS, ends: bool = True, **changes: Any) -> str:
    """Saves a model of ``kind`` (t5, mt5, umt5, bert, roberta, gpt2) with a word tokenizer; returns the folder.

    ``ends``: whether the tokenizer ends a text with its end token.
    """
    transformers = import_transformers()

    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "t5": ("T5ForConditionalGeneration", "T5Config", T5),
        "mt5": ("MT5ForConditionalGeneration", "MT5Config", T5),
        "umt5": ("UMT5ForConditionalGeneration", "UMT5Config", T5),
        "bert": ("BertForMaskedLM", "BertConfig", BERT),
        "roberta": ("RobertaModel", "RobertaConfig", BERT | {"max_position_embeddings": 12, "pad_token_id": 0}),
        "gpt2": ("GPT2Model", "GPT2Config", GPT),
    }
    model, config, sizes = kinds[kind]
    torch.manual_seed(0)
    made = getattr(transformers, config)(vocab_size=len(words), **(sizes | changes))
    getattr(transformers, model)(made).save_pretrained(folder)
    word_tokenizer(words, ends).save_pretrained(folder)
    return str(folder)


def word_tokenizer(words: tuple[str, ...] = WORDS, ends: bool = True) -> Any:
    """Returns a tokenizer with a token per word, which ends a text with its end token if it ``ends`` one."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return import_transformers().PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
