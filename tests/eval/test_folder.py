"""Many prompts into a folder, what PNGs say, and that a killed call goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataprep.schema import UserError
from eval.cascade import Samples
from eval.folder import LINES, draw_folder, read_lines
from eval.metadata import read_png, save_png

PROMPTS = ["a red circle", "a blue square", "a red circle", "两个圆", "five", "six"]


class Painter:
    """A cascade whose images are a function of prompt, seed and index; it breaks after so many calls."""

    digest, watermark = "0123456789abcdef", None

    def __init__(self, calls: int = 99) -> None:
        self.calls, self.asked = calls, list[str]()

    def __call__(self, prompts: list[str], num: int, seed: int, **call: Any) -> Samples:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        self.asked += prompts
        jobs = [(prompt, index) for prompt in prompts for index in range(num)]
        seeds = [[seed, index, *prompt.encode()] for prompt, index in jobs]
        images = [Image.fromarray(np.random.default_rng(s).integers(0, 255, (4, 4, 3), np.uint8)) for s in seeds]
        making = {"seed": seed, "negative": None, "model": self.digest, "settings": {"base": {"steps": 3}}}
        return Samples(images, [p for p, _ in jobs], [i for _, i in jobs], {"base": images}, making=making)


def content(folder: Path) -> dict[str, Any]:
    lines = sorted(read_lines(folder), key=lambda line: line["file"])
    return {"lines": lines} | {path.name: path.read_bytes() for path in folder.glob("*.png")}


def draw(painter: Painter, folder: Path, prompts: list[str] = PROMPTS, **call: Any) -> list[int]:
    return list(draw_folder(painter, prompts, folder, num=2, seed=3, at_once=2, **call))  # type: ignore[arg-type]


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert draw(Painter(), whole) == [0, 2, 4, 6]
    assert len(list(whole.glob("*.png"))) == 12 and len(read_lines(whole)) == 12
    with pytest.raises(KeyboardInterrupt):
        draw(Painter(1), killed)
    with (killed / LINES).open("a") as lines:  # torn in the middle of a line
        lines.write('{"file": "00002-0')
    (killed / "00001-01.png").unlink()
    painter = Painter()
    assert draw(painter, killed) == [1, 3, 5, 6]
    assert painter.asked == PROMPTS[1:]
    assert {name: value for name, value in content(killed).items() if name != "lines"} == {
        name: value for name, value in content(whole).items() if name != "lines"
    }
    assert {line["file"] for line in read_lines(killed)} == {line["file"] for line in read_lines(whole)}
    again = Painter()
    assert draw(again, killed) == [6] and again.asked == []


def test_other_settings_or_prompts_are_refused(tmp_path: Path) -> None:
    draw(Painter(), tmp_path, negative="x")
    with pytest.raises(UserError, match=r"call was .*'x'.*, now it is .*'y'.*; name an empty folder"):
        draw(Painter(), tmp_path, negative="y")
    with pytest.raises(UserError, match="shows 'a red circle', which is not prompt 0 now"):
        draw(Painter(), tmp_path, ["a dog", *PROMPTS[1:]], negative="x")


def test_png_metadata_come_back(tmp_path: Path) -> None:
    info = {"prompt": "红色 circle", "seed": 7, "index": 1, "negative": None, "settings": {"base": {"steps": 3}}}
    save_png(tmp_path / "a.png", Image.new("RGB", (2, 2)), info | {"model": "0123456789abcdef"})
    found = read_png(tmp_path / "a.png")
    assert found.pop("software") == "imagen-ray"
    assert found == {key: value for key, value in info.items() if value is not None} | {"model": "0123456789abcdef"}
    assert json.loads(Image.open(tmp_path / "a.png").text["settings"]) == {"base": {"steps": 3}}  # type: ignore[attr-defined]
    Image.new("RGB", (2, 2)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="says nothing of imagen-ray"):
        read_png(tmp_path / "b.png")
    (tmp_path / "c.png").write_text("no")
    with pytest.raises(UserError, match="not a picture that can be read"):
        read_png(tmp_path / "c.png")
