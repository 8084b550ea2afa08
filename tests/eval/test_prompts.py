"""Prompts are distinct, of the split they say, and a user's file is read or refused with the remedy."""

from pathlib import Path

import pytest

from dataprep.grammar import is_held_out, parse
from dataprep.schema import UserError
from eval.prompts import LONGEST, read_prompts, scene_prompts


def test_scene_prompts() -> None:
    prompts = scene_prompts(100, seed=3)
    assert prompts == scene_prompts(100, seed=3) and prompts != scene_prompts(100, seed=4)
    assert [prompt.split for prompt in prompts] == ["seen"] * 100 + ["heldout"] * 100
    for prompt in prompts:
        assert prompt.claim is not None and parse(prompt.prompt) == prompt.claim
        assert is_held_out(prompt.claim) == (prompt.split == "heldout")
    assert len({prompt.claim for prompt in prompts}) == 200
    assert 20 < sum(prompt.language == "zh" for prompt in prompts) < 80
    assert scene_prompts(40, seed=3)[:40] == prompts[:40]


def test_a_users_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff# mine\na red circle on the left\n\n  一个红色圆形  \na cat in a hat\n", encoding="utf-8")
    prompts = read_prompts(str(path))
    assert [(prompt.prompt, prompt.language, prompt.split) for prompt in prompts] == [
        ("a red circle on the left", "en", "user"),
        ("一个红色圆形", "zh", "user"),
        ("a cat in a hat", "en", "user"),
    ]
    assert prompts[0].claim == parse("a red circle on the left") and prompts[2].claim is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "no prompt in it"),
        (b"\n# nothing\n", "no prompt in it"),
        (b"\xff\xfe\x00", "not UTF-8 at byte 0"),
        (b"x" * (LONGEST + 1), "line 1 has 1001 characters"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_prompts(str(path))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a folder"):
        read_prompts(str(tmp_path))
