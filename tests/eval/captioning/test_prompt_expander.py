"""Prompts written out by a language model: a tiny random Llama."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from eval.captioning.config import ExpandConfig
from eval.captioning.prompt_expander import PromptExpander, expand_prompts
from tests.helpers.vision_language import save_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llama(tmp_path_factory.mktemp("llama"))


def load(folder: str, **changes: object) -> PromptExpander:
    return PromptExpander.load(ExpandConfig.model_validate({"model": folder, "max_tokens": 6} | changes))


def test_a_prompt_is_written_out_the_same_in_any_batch(folder: str) -> None:
    expander = load(folder)
    prompts = ["a red house", "the cat on the left", "a tree", "a red house", ""]
    written = expander.expand(prompts)
    assert set(written) == {"a red house", "the cat on the left", "a tree"}
    for prompt, text in written.items():
        assert expander.expand([prompt]) == {prompt: text}
        assert len(text.split()) == 6


def test_the_instruction_stands_before_the_prompt(folder: str, tmp_path: Path) -> None:
    expander = load(folder, prompt="describe")
    assert expander.write_turn("a tree").split() == ["user", ":", "describe", "a", "tree"]
    plain = load(save_llama(tmp_path, chat=False), prompt="describe")
    assert plain.write_turn("a tree") == "describe\n\na tree\n\n"


def test_without_an_expander_nothing_is_written() -> None:
    assert expand_prompts(None, ["a tree"]) == {}


def test_a_folder_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expand: .* cannot be loaded .*; give the whole folder of a causal"):
        load(str(tmp_path))
