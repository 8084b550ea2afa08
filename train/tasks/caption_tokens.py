"""What the tasks that pretrain a text encoder on captions share: batches of token ids, and a tokenizer to go on with.

Shape legend: B batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.hub import HUB_PREFIX
from dataprep.io.model_imports import import_transformers
from train.initial_weights.hub import download_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORE = -100  # label of a position without loss
MASKED = torch.finfo(torch.bfloat16).min  # added to the logit of a masked key


def pad_tokens(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Returns ids as int64 (B, longest), padded with ``value``."""
    out = torch.full((len(rows), max(len(row) for row in rows)), value, dtype=torch.long)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = torch.tensor(row)
    return out


def mask_padding(ids_BL: Tensor, pad_id: int) -> Tensor:
    """Returns what is added to the logits of keys, float32 (B, 1, 1, L).

    Of any other form transformers asks the device whether it masks anything, twice, and waits for the answer.
    """
    return torch.zeros(ids_BL.shape, device=ids_BL.device).masked_fill_(ids_BL == pad_id, MASKED)[:, None, None]


def load_trained_tokenizer(folder: str, needed: str, kind: str) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of an encoder (a local folder, a URL or ``hf://NAME``).

    Raises UserError for one without the token ``needed``, that ``kind`` of encoder hides text by.
    """
    local = download_weights(folder) if folder.startswith(HUB_PREFIX) else storage.local_folder(folder)
    tokenizer = import_transformers().AutoTokenizer.from_pretrained(local)
    if tokenizer.convert_tokens_to_ids(needed) in (None, tokenizer.unk_token_id):
        raise UserError(
            f"encoder.pretrain.init: the tokenizer of {folder} has no {needed}, by which text is hidden; name a {kind}"
        )
    return tokenizer
