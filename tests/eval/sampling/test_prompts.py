"""Prompts are distinct, of the split they say, and a user's file is read or refused with the remedy."""

import json
import re
from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from dataprep.synthetic.grammar import is_held_out, parse_caption
from eval.sampling.prompts import MAX_CHARACTERS, read_prompts, read_protocol, scene_prompts


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


def test_a_users_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff# mine\na red circle on the left\n\n  一个红色圆形  \na cat in a hat\n", encoding="utf-8")
    prompts = read_prompts(str(path))
    assert [(prompt.prompt, prompt.language, prompt.split) for prompt in prompts] == [
        ("a red circle on the left", "en", "user"),
        ("一个红色圆形", "zh", "user"),
        ("a cat in a hat", "en", "user"),
    ]
    assert prompts[0].claim == parse_caption("a red circle on the left") and prompts[2].claim is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "no prompt in it"),
        (b"\n# nothing\n", "no prompt in it"),
        (b"\xff\xfe\x00", "not UTF-8 at byte 0"),
        (b"x" * (MAX_CHARACTERS + 1), "line 1 has 1001 characters"),
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


# ---------------------------------------------------------------------------------------------- protocols


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", 'Prompts,Category\nA red car,Colors\n"A dog, and a cat",Counting\nA red car,Colors\n'),
        ("p.tsv", "caption\tcategory\nA red car\tColors\nA dog, and a cat\tCounting\n"),
        ("p.jsonl", '{"text": "A red car", "split": "Colors"}\n\n{"text": "A dog, and a cat", "split": "Counting"}\n'),
    ],
)
def test_tables_of_prompts(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = read_protocol(str(tmp_path / name), 10, 0)
    assert [(item.prompt, item.split) for item in found] == [("A red car", "colors"), ("A dog, and a cat", "counting")]


def test_coco_captions_are_drawn_by_the_seed(tmp_path: Path) -> None:
    rows = [{"image_id": index, "caption": f"caption {index} "} for index in range(100)]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": rows}))
    path = str(tmp_path / "captions.json")
    whole = [item.prompt for item in read_protocol(path, 1000, 0)]
    assert whole == [f"caption {index}" for index in range(100)]
    some = [item.prompt for item in read_protocol(path, 30, 1)]
    assert some == [prompt for prompt in whole if prompt in some]  # in the file's order
    assert len(set(some)) == 30
    assert some == [item.prompt for item in read_protocol(path, 30, 1)]
    assert some != [item.prompt for item in read_protocol(path, 30, 2)]


def test_a_text_file_is_read_as_always(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# x\na red circle\na red circle\n一个红色圆形\n")
    found = read_protocol(str(tmp_path / "p.txt"), 10, 0)
    assert [(item.prompt, item.split, item.language) for item in found] == [
        ("a red circle", "user", "en"),
        ("一个红色圆形", "user", "zh"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "a,b\n1,2\n", "no column named prompt, prompts, caption, text; it has a, b"),
        ("p.csv", "prompt\n", "no column named"),
        ("p.jsonl", "{", "not a .jsonl of prompts"),
        ("p.jsonl", "[1]", "no column named"),
        ("p.json", "[]", "not a .json of prompts"),
        ("p.csv", "prompt\n" + "x" * 2000 + "\n", "no prompt in it of 1 to 1000"),
    ],
)
def test_files_that_hold_no_protocol(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_protocol(str(tmp_path / name), 10, 0)
    with pytest.raises(UserError, match="no such file"):
        read_protocol(str(tmp_path / f"none-{name}"), 10, 0)
