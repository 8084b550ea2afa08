"""``imagen-ray sample``: what its options ask of the cascade, what it writes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataprep.io import storage
from eval.sampling.config import CascadeConfig, StageEntry
from eval.sampling.options import SamplingOptions
from eval.sampling.png_metadata import read_png_metadata
from eval.sampling.samples import Samples
from pipeline.cli.main import main
from pipeline.inference import sample
from pipeline.stages.trained_cascade import copy_parts_here


class Recorder:
    """A cascade that records its calls and returns grey images."""

    digest = "0123456789abcdef"
    watermark: str | None = None

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def sample(self, prompts: Sequence[str], options: SamplingOptions) -> Samples:
        self.calls.append({"prompts": list(prompts), **vars(options)})
        jobs = [(prompt, index) for prompt in prompts for index in range(options.num)]
        images = [Image.fromarray(np.full((4, 6, 3), 10 * index, np.uint8)) for _, index in jobs]
        making = {"seed": options.seed, "model": self.digest, "settings": {}}
        return Samples(images, [p for p, _ in jobs], [i for _, i in jobs], {"base": images}, making=making)


@pytest.fixture
def cascade(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()

    def load(folder: str, device: str, watermark: str | None) -> Recorder:
        recorder.watermark = watermark
        return recorder

    monkeypatch.setattr(sample, "load_cascade", load)
    return recorder


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["sample", "run", *words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_options_reach_the_cascade(cascade: Recorder, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "in.png")
    words = ["a cat", "--num", "2", "--seed", "3", "--out", str(tmp_path / "deep" / "a.png"), "--negative", "a dog"]
    words += ["--image", str(tmp_path / "in.png"), "--mask", str(tmp_path / "in.png"), "--strength", "0.5"]
    words += ["--size", "96x64", "--best-of", "4", "--sampler", "unipc", "--steps", "9", "--refuse-overlong"]
    words += ["--set", "base.guidance=2", "--set", "sr.guidance=1.5", "--set", "guidance_interval=[0.2, 0.9]"]
    assert run(*words, "--start-at", "sr", "--stage", "sr", "--watermark", "mine") == 0
    (call,) = cascade.calls
    assert call.pop("image").size == call.pop("mask").size == (8, 8)
    assert call == {
        "prompts": ["a cat"], "num": 2, "seed": 3, "negative": "a dog", "start_at": "sr", "stop_at": "sr", "best_of": 4,
        "overlong": "refuse", "batch_size": 16, "size": (96, 64),
        "changes": {
            "strength": 0.5, "sampler": "unipc", "steps": 9, "guidance": {"base": 2, "sr": 1.5},
            "guidance_interval": [0.2, 0.9],
        },
    }  # fmt: skip
    assert cascade.watermark == "mine"
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["a-000.png", "a-001.png", "a.png"]
    assert Image.open(tmp_path / "deep" / "a.png").size == (16, 4)
    assert read_png_metadata(tmp_path / "deep" / "a-001.png")["index"] == 1


def test_images_tell_how_they_were_made(cascade: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.png"
    assert run("两只猫", "--seed", "5", "--out", str(out)) == 0
    assert capsys.readouterr().out.split() == [str(out)]
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(out)])
    assert caught.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prompt"] == "两只猫" and told["seed"] == 5 and told["model"] == Recorder.digest
    assert told["run"] == "run" and told["file"] == str(out)


def test_a_file_of_prompts_fills_a_folder(cascade: Recorder, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n# not this\ntwo\n")
    words = ["--prompts-file", str(tmp_path / "p.txt"), "--out", str(tmp_path / "out"), "--num", "2"]
    assert run(*words) == 0
    names = ["00000-00.png", "00000-01.png", "00001-00.png", "00001-01.png"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == names
    assert run(*words) == 0 and len(cascade.calls) == 1  # all there: nothing is sampled again
    assert run(*words, "--negative", "three") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "guidance"], "--set guidance: give KEY=VALUE"),
        (["--set", "guidance=["], r"--set guidance=["),
        (["--guidance", "2", "--set", "base.guidance=3"], "guidance is set for all stages already"),
        (["--size", "64"], "--size 64: give two whole numbers, such as 3x2"),
        (["--size", "64x-1"], "--size 64x-1"),
        (["--size", "64x64", "--aspect", "3:2"], "give one of them"),
        (["--aspect", "3x2"], "such as 3:2"),
        (["--image", "nowhere.png"], "--image nowhere.png: not an image that can be read"),
        (["--strength", "much"], "--strength"),
    ],
)
def test_wrong_options(
    cascade: Recorder, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    assert run("a cat", "--out", str(tmp_path / "a.png"), *words) == 2
    assert message in capsys.readouterr().err.replace("'", "") and cascade.calls == []


def test_parts_in_an_object_store_are_copied_to_this_machine() -> None:
    store = "memory://a-cascade"
    for part in ("base", "encoder", "clip"):
        storage.write_bytes(f"{store}/{part}/config.json", part.encode())
    stage = StageEntry(name="base", resolution=8, path=f"{store}/base")
    config = CascadeConfig(stages=[stage], encoder=f"{store}/encoder", clip=f"{store}/clip")
    found = copy_parts_here(config)
    for part, path in (("base", found.stages[0].path), ("encoder", found.encoder), ("clip", found.clip)):
        assert (Path(str(path)) / "config.json").read_text() == part
