"""Batches of token ids, and their mask for transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dataprep.io.errors import UserError
from tests.helpers.encoders import save_encoder
from train.tasks.caption_tokens import load_trained_tokenizer, mask_padding, pad_tokens


def test_rows_are_padded_to_the_longest() -> None:
    assert pad_tokens([[1, 2, 3], [], [4]], -100).tolist() == [[1, 2, 3], [-100] * 3, [4, -100, -100]]


def test_padding_is_added_to_the_logits() -> None:
    mask = mask_padding(torch.tensor([[5, 0], [0, 0]]), 0)
    assert mask.shape == (2, 1, 1, 2)
    assert (mask < -1e38).flatten(1).tolist() == [[False, True], [True, True]] and float(mask[0, 0, 0, 0]) == 0


def test_a_tokenizer_needs_what_text_is_hidden_by(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path, "bert")
    assert load_trained_tokenizer(folder, "red", "BERT")("red")["input_ids"] == [4, 1]
    with pytest.raises(UserError, match=r"encoder\.pretrain\.init: the tokenizer of .* has no \[MASK\].*name a BERT"):
        load_trained_tokenizer(folder, "[MASK]", "BERT")
