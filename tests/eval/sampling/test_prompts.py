"""Prompts of the grammar are distinct and of the split they say; a prompt is text without blanks around it."""

from __future__ import annotations

import pytest

from dataprep.io.errors import UserError
from dataprep.synthetic.grammar import is_held_out, parse_caption
from eval.sampling.prompts import clean_prompt, scene_prompts


def test_scene_prompts() -> None:
    prompts = scene_prompts(100, seed=3)
    assert prompts == scene_prompts(100, seed=3) and prompts != scene_prompts(100, seed=4)
    assert [prompt.split for prompt in prompts] == ["seen"] * 100 + ["heldout"] * 100
    for prompt in prompts:
        assert prompt.claim is not None and parse_caption(prompt.prompt) == prompt.claim
        assert is_held_out(prompt.claim) == (prompt.split == "heldout")
    assert len({prompt.claim for prompt in prompts}) == 200
    assert 20 < sum(prompt.language == "zh" for prompt in prompts) < 80
    assert scene_prompts(40, seed=3)[:40] == prompts[:40]


@pytest.mark.parametrize("around", [" ", "\u2028", "\u0085", "\t", "\x0b\x1c", "\u3000"])
def test_blanks_around_a_prompt_do_not_count(around: str) -> None:
    assert clean_prompt(f"{around}a  cat{around}") == "a  cat"


@pytest.mark.parametrize(("prompt", "message"), [("caf\udce9", "not UTF-8 at character 3"), ("a\0b", "has a NUL")])
def test_what_is_no_text_is_refused(prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        clean_prompt(prompt)
