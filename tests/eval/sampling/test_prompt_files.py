"""A user's file of prompts is read whole, each line or row a prompt or counted, or refused with the remedy."""

import json
import re
from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from dataprep.synthetic.grammar import parse_caption
from eval.sampling.prompt_files import MAX_CHARACTERS, read_prompt_file, read_prompts, read_protocol

NO_LINE_ENDS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"  # where str.splitlines splits


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
        ("a cat".encode("utf-16-le"), "line 1 'a.x00 .x00c.x00a.x00t.x00': has a NUL character; is it UTF-16"),
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
        ("p.jsonl", "[1]", "line 1 is no object"),
        ("p.json", "[]", "not a .json of prompts"),
        ("p.csv", "prompt\na cat\n" + "x" * 1001 + "\n", "line 3 has 1001 characters; keep it to 1000 (it begins"),
        ("p.jsonl", '{"prompt": "' + "x" * 1001 + '"}', "line 1 has 1001 characters"),
        ("p.json", '{"annotations": [{"caption": "a"}, {"caption": "' + "x" * 1001 + '"}]}', "annotation 1 has 1001"),
        ("p.csv", 'prompt\na cat\n"a dog\na cow\na pig\n', "unexpected end of data, in the row of line 3"),
        ("p.csv", 'prompt\na cat\n"a dog" red\n', "in the row of line 3"),
        ("p.csv", "prompt\na cat, and a dog\n", "line 2 has 1 value more than the header"),
        ("p.tsv", "prompt\tn\na cat\t1\t2\n", "line 2 has 1 value more"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ["a", "b"]}\n', "line 2: prompt is \"['a', 'b']\", not a text"),
        ("p.jsonl", '{"prompt": 7}', "line 1: prompt is '7', not a text"),
        ("p.jsonl", '{"prompt": "\\ud800"}', "not UTF-8 at character 0"),
        ("p.jsonl", '{"prompt": "a\\u0000b"}', "has a NUL"),
    ],
)
def test_files_that_hold_no_protocol(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_protocol(str(tmp_path / name), 10, 0)
    with pytest.raises(UserError, match="no such file"):
        read_protocol(str(tmp_path / f"none-{name}"), 10, 0)


def test_a_number_sign_begins_a_comment_only_before_a_blank(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# a note\n#1 dad mug\n#\n## more\n#cats\n")
    found = read_prompt_file(str(tmp_path / "p.txt"))
    assert [item.prompt for item in found.prompts] == ["#1 dad mug", "#cats"]
    assert found.left_out == {"comment": 3}


@pytest.mark.parametrize("separator", NO_LINE_ENDS)
@pytest.mark.parametrize("extension", ["txt", "csv", "tsv", "jsonl"])
def test_only_line_ends_end_a_line(tmp_path: Path, separator: str, extension: str) -> None:
    wanted = [f"a red{separator}circle", "two cats"]
    if extension == "jsonl":
        text = "\n".join(json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in wanted)
    else:
        text = "\r".join(wanted) if extension == "txt" else "\r\n".join(["prompt", *wanted])
    (tmp_path / f"p.{extension}").write_bytes(text.encode())
    assert [item.prompt for item in read_prompt_file(str(tmp_path / f"p.{extension}")).prompts] == wanted


def test_every_row_is_a_prompt_or_counted(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(" Prompt ,n\na cat,1\n,2\n a cat ,3\n#1 dad,4\n# no comment,5\n")
    found = read_prompt_file(str(tmp_path / "p.csv"))
    assert [item.prompt for item in found.prompts] == ["a cat", "#1 dad", "# no comment"]
    assert found.left_out == {"empty": 1, "repeated": 1}
    assert found.describe() == "3 prompts; left out: 1 as empty, 1 as repeated"
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n{"prompt": NaN}\n{"prompt": null}\n{}\n')
    assert read_prompt_file(str(tmp_path / "p.jsonl")).left_out == {"empty": 3}
