"""What captions and expanded prompts share: the dtype of a model, and where its answer ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SENTENCE_ENDS = (".", "!", "?", "。", "！", "？")


class Answer(NamedTuple):
    """What a model wrote, as one line, and whether it was cut at the limit of tokens."""

    text: str
    cut: bool


def choose_dtype(name: str, device: str) -> torch.dtype:
    """Returns the dtype called ``name``; auto: bfloat16 on a GPU, else float32."""
    return DTYPES.get(name, torch.bfloat16 if device.startswith("cuda") else torch.float32)


def prepare_tokenizer(tokenizer: Any) -> None:
    """Makes a tokenizer pad on the left, since an answer continues the last token of its prompt."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def list_ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """Returns the tokens with which a model ends its answer."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return frozenset(int(end) for end in (ends if isinstance(ends, list) else [ends]) if end is not None)


def generate_greedy(model: Any, inputs: Any, max_tokens: int, pad: int | None) -> list[list[int]]:
    """Returns the tokens that a model writes after each prompt, at most ``max_tokens``, the likeliest each time."""
    sampling = dict.fromkeys(("temperature", "top_p", "top_k"))  # greedy has none
    out_BT = model.generate(
        **inputs, max_new_tokens=max_tokens, do_sample=False, num_beams=1, pad_token_id=pad, **sampling
    )
    start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    answers: list[list[int]] = out_BT[:, start:].tolist()
    return answers


def finish_answer(text: str, tokens: Sequence[int], ends: frozenset[int]) -> Answer:
    """Returns one line of text; an answer that did not end is cut after its last whole sentence, if it has one."""
    line = " ".join(text.split())
    if ends.intersection(tokens):
        return Answer(line, False)
    end = max(line.rfind(sign) for sign in SENTENCE_ENDS)
    return Answer(line[: end + 1] if end > 0 else line, True)
