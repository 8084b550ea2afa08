"""Many prompts into a folder: a killed call resumes, and other options are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataprep.io.errors import UserError
from eval.sampling.batch_folder import LINES_FILE, SETTINGS_FILE, read_lines, sample_folder
from eval.sampling.options import SamplingOptions
from eval.sampling.samples import Samples

PROMPTS = ["a red circle", "a blue square", "a red circle", "两个圆", "five", "six"]


class FakeCascade:
    """Its images are a function of prompt, seed and index; it breaks after ``calls`` calls."""

    digest, watermark = "0123456789abcdef", None

    def __init__(self, calls: int = 99, **additions: Any) -> None:
        self.calls, self.asked, self.additions = calls, list[str](), additions

    def sample(self, prompts: Sequence[str], options: SamplingOptions) -> Samples:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        self.asked += prompts
        jobs = [(prompt, index) for prompt in prompts for index in range(options.num)]
        seeds = [[options.seed, index, *prompt.encode()] for prompt, index in jobs]
        images = [Image.fromarray(np.random.default_rng(s).integers(0, 255, (4, 4, 3), np.uint8)) for s in seeds]
        making = {"seed": options.seed, "negative": None, "model": self.digest, "settings": {"base": {"steps": 3}}}
        return Samples(images, [p for p, _ in jobs], [i for _, i in jobs], {"base": images}, making=making)


def content(folder: Path) -> dict[str, Any]:
    lines = sorted(read_lines(folder), key=lambda line: line["file"])
    return {"lines": lines} | {path.name: path.read_bytes() for path in folder.glob("*.png")}


def fill(cascade: FakeCascade, folder: Path, prompts: Sequence[str] = PROMPTS, **options: Any) -> list[int]:
    asked = SamplingOptions(num=2, seed=3, **options)
    return list(sample_folder(cascade, prompts, folder, asked, chunk=2))


def test_killed_call_resumes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert fill(FakeCascade(), whole) == [0, 2, 4, 6]
    assert len(list(whole.glob("*.png"))) == 12 and len(read_lines(whole)) == 12
    with pytest.raises(KeyboardInterrupt):
        fill(FakeCascade(1), killed)
    lines = (whole / LINES_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
    with (killed / LINES_FILE).open("a", encoding="utf-8") as file:  # one image of prompt 2, and an incomplete line
        file.write(lines[4] + lines[5][:20])
    (killed / "00001-01.png").unlink()
    cascade = FakeCascade()
    assert fill(cascade, killed) == [1, 3, 5, 6]
    assert cascade.asked == PROMPTS[1:]
    assert {name: value for name, value in content(killed).items() if name != "lines"} == {
        name: value for name, value in content(whole).items() if name != "lines"
    }
    assert sorted(line["file"] for line in read_lines(killed)) == [line["file"] for line in read_lines(whole)]
    again = FakeCascade()
    assert fill(again, killed) == [6] and again.asked == []


def test_other_options_or_prompts_are_refused(tmp_path: Path) -> None:
    fill(FakeCascade(), tmp_path, negative="x")
    with pytest.raises(UserError, match=r"negative was 'x', now it is 'y'; name an empty folder"):
        fill(FakeCascade(), tmp_path, negative="y")
    with pytest.raises(UserError, match="shows 'a red circle', which is not prompt 0 now"):
        fill(FakeCascade(), tmp_path, ["a dog", *PROMPTS[1:]], negative="x")


@pytest.mark.parametrize(
    ("additions", "message"),
    [
        ({"weights": "int8"}, "weights was None, now it is 'int8'"),
        ({"adapters": [{"weight": 1.0}]}, r"adapters was None, now it is \[{'weight': 1.0}\]"),
    ],
)
def test_other_adapters_or_weights_are_refused(tmp_path: Path, additions: dict[str, Any], message: str) -> None:
    fill(FakeCascade(), tmp_path / "plain")
    with pytest.raises(UserError, match=rf"plain: {message}; name an empty folder"):
        fill(FakeCascade(**additions), tmp_path / "plain")
    fill(FakeCascade(**additions), tmp_path / "changed")
    (key,) = additions
    with pytest.raises(UserError, match=rf"changed: {key} was .*, now it is None; name an empty folder"):
        fill(FakeCascade(), tmp_path / "changed")
    assert fill(FakeCascade(**additions), tmp_path / "changed") == [6]


def test_a_prompt_may_hold_any_separator(tmp_path: Path) -> None:
    prompts = [f"a red{character}circle" for character in "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e\r\n"] + ["  blanks "]
    assert fill(FakeCascade(), tmp_path, prompts)[-1] == len(prompts)
    again = FakeCascade()
    assert fill(again, tmp_path, prompts) == [len(prompts)] and again.asked == []
    assert {line["prompt"] for line in read_lines(tmp_path)} == {prompt.strip() for prompt in prompts}


def test_images_of_another_call_are_not_mixed(tmp_path: Path) -> None:
    fill(FakeCascade(), tmp_path)
    with pytest.raises(UserError, match=r"00004-00.png shows 'five', which is not prompt 4 now"):
        fill(FakeCascade(), tmp_path, PROMPTS[:4])
    with pytest.raises(UserError, match="num was 2, now it is 1"):
        list(sample_folder(FakeCascade(), PROMPTS, tmp_path, SamplingOptions(num=1, seed=3)))
    (tmp_path / SETTINGS_FILE).unlink()
    with pytest.raises(UserError, match=r"holds 00000-00.png of another call, but no settings.json"):
        fill(FakeCascade(), tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "damaged"),
        (b"[" * 100000, "damaged"),
        (b'{"file": "00000-00.png", "prompt": "caf\xe9"}', "damaged"),
        (b'{"prompt": "a red circle"}', "line 13 does not name an image and its prompt"),
        (b'{"file": "cat.png", "prompt": "a red circle"}', "line 13 does not name an image and its prompt"),
        (b'{"file": "00000-00.png"}', "line 13 does not name an image and its prompt"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    fill(FakeCascade(), tmp_path)
    with (tmp_path / LINES_FILE).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(UserError, match=rf"{LINES_FILE}: {message}.*; name an empty folder"):
        fill(FakeCascade(), tmp_path)


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    fill(FakeCascade(), tmp_path)
    (tmp_path / SETTINGS_FILE).write_text("{\n")
    with pytest.raises(UserError, match=rf"{SETTINGS_FILE}: damaged"):
        fill(FakeCascade(), tmp_path)
