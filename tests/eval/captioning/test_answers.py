"""Where an answer ends, and what a tokenizer needs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from eval.captioning.answers import choose_dtype, finish_answer, list_ends, prepare_tokenizer

ENDS = frozenset({1, 2})


@pytest.mark.parametrize(
    ("text", "tokens", "answer"),
    [
        ("a red house .  a tree on\nthe", [13, 14], ("a red house .", True)),
        ("a red house", [13, 14], ("a red house", True)),  # no whole sentence
        ("a red house . a tree", [13, 1], ("a red house . a tree", False)),
        (" 一座红房子。一棵", [9], ("一座红房子。", True)),
        ("", [1], ("", False)),
    ],
)
def test_an_answer_that_did_not_end_is_cut_after_a_sentence(
    text: str, tokens: list[int], answer: tuple[str, bool]
) -> None:
    assert finish_answer(text, tokens, ENDS) == answer


@pytest.mark.parametrize(("given", "found"), [(7, {7}), ([7, 8], {7, 8}), (None, {5})])
def test_ends_are_the_models_or_the_tokenizers(given: object, found: set[int]) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=given))
    assert list_ends(model, SimpleNamespace(eos_token_id=5)) == found


def test_a_tokenizer_pads_on_the_left() -> None:
    tokenizer = SimpleNamespace(padding_side="right", pad_token_id=None, eos_token="</s>", pad_token=None)
    prepare_tokenizer(tokenizer)
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "</s>")


def test_dtypes() -> None:
    assert choose_dtype("auto", "cpu") is torch.float32 and choose_dtype("auto", "cuda:1") is torch.bfloat16
    assert choose_dtype("float16", "cpu") is torch.float16
