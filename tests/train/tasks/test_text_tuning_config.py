"""Settings of `text_tuning` that do not fit each other."""

from __future__ import annotations

from typing import Any

import pytest

from train.tasks.text_tuning_config import TextTuningConfig

GIVEN: dict[str, Any] = {"model": "runs/demo", "resolution": 16}


def test_words_an_adapter_or_both_are_learned() -> None:
    for parts in ({"tokens": {"zwx": "square"}}, {"adapter": {"rank": 4}}):
        config = TextTuningConfig(**GIVEN, **parts)
        assert config.trains_part and config.weight_decay == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "nothing is learned; name words in `tokens`, or set `adapter`"),
        ({"tokens": {"zwx": "cat"}, "init": "runs/x"}, "text_tuning.init=runs/x: the encoder is that of `encoder`"),
        ({"tokens": {"two words": "cat"}}, "'two words' is not one word; take one without blanks"),
        ({"tokens": {"": "cat"}}, "'' is not one word"),
        ({"tokens": {"zwx": " "}}, r"text_tuning.tokens.zwx: give the word that it begins as"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextTuningConfig(**GIVEN, **changes)
