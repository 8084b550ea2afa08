"""Token ids that end with one token, whatever the tokenizer appends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dataprep.io.model_imports import import_transformers
from tests.helpers.encoders import WORDS, save_encoder, word_tokenizer
from train.models.caption_tokenizer import CaptionTokenizer, pad_ids


def bert_tokenizer(folder: Path) -> object:
    """Returns a WordPiece tokenizer of BERT's class, which has no end token by name."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue"]
    (folder / "vocab.txt").write_text("\n".join(words))
    return import_transformers().BertTokenizerFast(str(folder / "vocab.txt"))


def test_the_tokens_that_a_tokenizer_appends(tmp_path: Path) -> None:
    """Compared with transformers' own padding."""
    for tokenizer, end, pad in [(word_tokenizer(), 1, 0), (bert_tokenizer(tmp_path), 3, 0)]:
        ours = CaptionTokenizer(tokenizer, 6)
        assert (ours.end_id, ours.pad_id, ours.vocabulary) == (end, pad, len(tokenizer))
        texts = ["red", "", "blue red blue red blue red"]
        theirs = tokenizer(texts, truncation=True, max_length=6, padding="max_length", return_tensors="pt")
        assert torch.equal(ours(texts), theirs["input_ids"])


def test_a_tokenizer_that_appends_nothing_gets_an_end_of_its_own() -> None:
    ours = CaptionTokenizer(word_tokenizer(ends=False), 4)
    end = len(WORDS)
    assert (ours.end_id, ours.vocabulary) == (end, end + 1)
    assert ours(["a red", "", "a red blue circle"]).tolist() == [[3, 4, end, 0], [end, 0, 0, 0], [3, 4, 5, end]]


@pytest.mark.parametrize("ends", [True, False])
def test_a_tokenizer_without_padding_pads_with_its_end(ends: bool) -> None:
    plain = word_tokenizer(ends=ends)
    plain.pad_token = None
    ours = CaptionTokenizer(plain, 5)
    assert ours.pad_id == ours.end_id
    assert ours(["a red"]).tolist() == [[3, 4, *[ours.end_id] * 3]]


def test_the_ids_of_a_folder_are_those_of_its_tokenizer(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path, "bert")
    loaded = import_transformers().AutoTokenizer.from_pretrained(folder)
    assert CaptionTokenizer(loaded, 5)(["a red"]).tolist() == [[3, 4, 1, 0, 0]]


def test_rows_that_are_too_long_are_no_rows() -> None:
    assert pad_ids([[], [5]], 2, 9).tolist() == [[9, 9], [5, 9]]
    with pytest.raises(RuntimeError):
        pad_ids([[1, 2, 3]], 2, 0)
