"""The config of written captions."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from eval.captioning.config import CaptionConfig


@pytest.mark.parametrize("name", ["caption", "Long", "", "a b"])
def test_names_that_cannot_be_columns(name: str) -> None:
    with pytest.raises(ValidationError, match="a caption is named by lower-case letters"):
        CaptionConfig.model_validate({"prompts": {name: {"prompt": "Describe it."}}})


def test_a_prompt_of_ones_own_replaces_the_usual() -> None:
    config = CaptionConfig.model_validate({"prompts": {"tags": {"prompt": "List tags.", "max_tokens": 9}}})
    assert list(config.prompts) == ["tags"] and list(CaptionConfig().prompts) == ["long", "short"]
