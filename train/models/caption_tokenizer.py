"""Token ids for the text tower of the small CLIP, each text ended by one token, whose output stands for the text.

T5's tokenizer ends a text with ``</s>``, BERT's with ``[SEP]``: found by what the tokenizer does, since its attributes
do not tell whether it appends the token. One that appends none gets a token of its own behind its vocabulary.
Shape legend: B batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class CaptionTokenizer:
    """A transformers tokenizer that ends every text with `end_id`, cuts to ``length`` tokens and pads with `pad_id`.

    ``vocabulary`` is the number of ids, the end token's included.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length
        end = find_end_token(lambda text: tokenizer(text)["input_ids"])
        self.vocabulary = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
        self.appends = end is None
        if end is None:
            end, self.vocabulary = self.vocabulary, self.vocabulary + 1
        self.end_id = end
        pad = tokenizer.pad_token_id
        self.pad_id = end if pad is None else int(pad)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Returns token ids, int64 (B, length) on the CPU: padded, or cut with the end token kept."""
        room = self.length - self.appends
        rows = self.tokenizer(list(captions), truncation=True, max_length=room)["input_ids"]
        return pad_ids([[*row, self.end_id] if self.appends else row for row in rows], self.length, self.pad_id)


def pad_ids(rows: Sequence[Sequence[int]], length: int, pad_id: int) -> Tensor:
    """Returns rows of ids, none longer than ``length``, as int64 (B, length), padded with ``pad_id`` behind."""
    ids_BL = torch.full((len(rows), length), pad_id)
    for target_L, row in zip(ids_BL, rows, strict=True):
        target_L[: len(row)] = torch.tensor(row, dtype=torch.long)
    return ids_BL


def find_end_token(encode: Callable[[str], Sequence[int]]) -> int | None:
    """Returns the id with which ``encode`` ends every text; None if there is none."""
    empty, text = encode(""), encode("a")
    return int(empty[-1]) if empty and empty[-1] == text[-1] else None
