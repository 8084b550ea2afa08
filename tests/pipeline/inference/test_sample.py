"""``imagen-ray sample``: what its options ask of the cascade, what it writes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataprep.io import storage
from eval.judging.image_folder import list_images
from eval.sampling.attention import AttentionMaps
from eval.sampling.config import CascadeConfig, StageEntry
from eval.sampling.options import SamplingOptions
from eval.sampling.png_metadata import read_png_metadata
from eval.sampling.samples import Samples
from pipeline.cli.main import main
from pipeline.inference import sample
from pipeline.stages.trained_cascade import copy_parts_here
from tests.helpers.cascades import WordEncoder


class Recorder:
    """A cascade that records its calls and returns grey images."""

    digest = "0123456789abcdef"
    watermark: str | None = None
    adapters: Sequence[str] = ()
    additions: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.encoder = WordEncoder()
        self.calls: list[dict[str, Any]] = []

    def sample(self, prompts: Sequence[str], options: SamplingOptions) -> Samples:
        self.calls.append({"prompts": list(prompts), **vars(options)})
        jobs = [(prompt, index) for prompt in prompts for index in range(options.num)]
        images = [Image.fromarray(np.full((4, 6, 3), 10 * index, np.uint8)) for _, index in jobs]
        making = {"seed": options.seed, "model": self.digest, "settings": {}}
        maps = AttentionMaps(np.ones((1, 2, 2, 2), np.float32), [(1.0, 0.0)])
        shown = {"base": [maps] * len(jobs)} if options.attention else {}
        prompts, indices = [p for p, _ in jobs], [i for _, i in jobs]
        return Samples(images, prompts, indices, {"base": images}, making=making, attention=shown)


@pytest.fixture
def cascade(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()

    def load(folder: str, device: str, watermark: str | None, adapters: Sequence[str], *more: Any) -> Recorder:
        recorder.watermark, recorder.adapters = watermark, list(adapters)
        return recorder

    monkeypatch.setattr(sample, "load_cascade", load)
    return recorder


@pytest.fixture(autouse=True)
def model(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("working")
    (folder / "run").mkdir()
    monkeypatch.chdir(folder)


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
    assert run(*words, "--start-at", "sr", "--stage", "sr", "--watermark", "mine", "--attention") == 0
    (call,) = cascade.calls
    assert call.pop("image").size == call.pop("mask").size == (8, 8)
    assert call == {
        "prompts": ["a cat"], "num": 2, "seed": 3, "negative": "a dog", "start_at": "sr", "stop_at": "sr", "best_of": 4,
        "overlong": "refuse", "batch_size": 16, "attention": True, "size": (96, 64),
        "variations_of": None, "to_image": None, "to_prompt": "",
        "changes": {
            "strength": 0.5, "sampler": "unipc", "steps": 9, "guidance": {"base": 2, "sr": 1.5},
            "guidance_interval": [0.2, 0.9],
        },
    }  # fmt: skip
    assert cascade.watermark == "mine"
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == [
        *("a-000-attention.png", "a-000.png", "a-001-attention.png", "a-001.png", "a.png"),
    ]
    assert read_png_metadata(tmp_path / "deep" / "a-001-attention.png")["index"] == 1
    assert Image.open(tmp_path / "deep" / "a.png").size == (16, 4)
    assert read_png_metadata(tmp_path / "deep" / "a-001.png")["index"] == 1
    assert [path.name for path in list_images(tmp_path / "deep")] == ["a-000.png", "a-001.png"]


def test_attention_is_a_picture_beside_a_single_image(
    cascade: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.png"
    assert run("a cat", "--attention", "--json", "--out", str(out)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["files"] == [str(out), str(tmp_path / "a-attention.png")]
    assert [image["file"] for image in printed["images"]] == [str(out)]
    assert Image.open(tmp_path / "a-attention.png").width > 100


def test_images_are_saved_before_the_pictures_of_attention(
    cascade: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a-000.png", "a-001.png", "a.png"]
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "draw_attention", fail)
    request = sample.SampleRequest(
        prompts=["a cat"], out=tmp_path / "a.png", options=SamplingOptions(num=2, attention=True)
    )
    with pytest.raises(KeyboardInterrupt):
        sample.sample_run("run", request)


@pytest.mark.parametrize("other", [["--prompts-file", "p.txt"], ["a cat", "--compile"]])
def test_attention_is_for_prompts_on_the_line(
    other: list[str], cascade: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / ("a.png" if "a cat" in other else "a")
    assert run(*other, "--attention", "--out", str(out)) == 2
    assert f"--attention with {other[-1] if 'a cat' in other else other[0]}:" in capsys.readouterr().err
    assert not cascade.calls


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
        (["--set", "base.steps=8", "--set", "steps=10"], "--set steps=10: steps is set for stage base already"),
        (["--size", "64"], "--size 64: give two whole numbers, such as 3x2"),
        (["--size", "64x-1"], "--size 64x-1"),
        (["--size", "64x64", "--aspect", "3:2"], "give one of them"),
        (["--aspect", "3x2"], "such as 3:2"),
        (["--image", "nowhere.png"], "--image nowhere.png: not a file that can be read"),
        (["--strength", "much"], "--strength"),
        (["--seed", str(2**64 + 3)], "--seed"),
        (["--seed", str(2**63)], "--seed"),
        (["--negative", "caf\udce9"], "--negative caf\\udce9: not UTF-8 at character 3"),
        (["--watermark", "caf\udce9"], "--watermark caf\\udce9: not UTF-8"),
        (["caf\udce9"], "prompt caf\\udce9: not UTF-8 at character 3; write it in UTF-8"),
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


def test_blanks_around_a_prompt_are_not_passed_on(cascade: Recorder, tmp_path: Path) -> None:
    assert run("  a cat\u2028", "--negative", " a dog ", "--out", str(tmp_path / "a.png")) == 0
    assert cascade.calls[0]["prompts"] == ["a cat"] and cascade.calls[0]["negative"] == "a dog"


def test_deep_images_and_masks_with_alpha(cascade: Recorder, tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0x4040, np.uint16)).save(tmp_path / "in.tif")
    Image.new("RGBA", (8, 8), (255, 255, 255, 0)).save(tmp_path / "mask.png")
    words = ["--image", str(tmp_path / "in.tif"), "--mask", str(tmp_path / "mask.png")]
    assert run("a cat", *words, "--out", str(tmp_path / "a.png")) == 0
    assert np.asarray(cascade.calls[0]["image"]).tolist() == [[[64] * 3] * 8] * 8
    assert cascade.calls[0]["mask"].mode == "RGBA"


def test_images_of_two_calls_are_not_mixed(
    cascade: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "a.png")]
    assert run("a cat", "--num", "4", *out) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run("a dog", "--num", "2", *out) == run("a dog", *out) == 2
    told = capsys.readouterr().err
    assert "2 images of an earlier call would stay beside the new ones (a-002.png, a-003.png)" in told
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run("a dog", "--num", "4", *out) == run("a dog", "a cat", "--num", "4", *out) == 0
    Image.new("RGB", (4, 4)).save(tmp_path / "b-2024.png")  # not ours
    assert run("a cat", "--out", str(tmp_path / "b.png")) == 0


@pytest.mark.parametrize("is_table", [False, True])
def test_an_output_that_cannot_be_written_is_refused_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_table: bool
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(sample, "load_cascade", load)
    (tmp_path / "p.txt").write_text("one\n")
    words = ["--prompts-file", str(tmp_path / "p.txt")] if is_table else ["a cat"]
    (tmp_path / "folder.png").mkdir()
    name, other = ("images", "p.txt") if is_table else ("x.png", "folder.png")
    for out in (tmp_path / other, tmp_path / "p.txt" / name, f"/proc/{name}"):
        assert run(*words, "--out", str(out)) == 2
        assert f"--out {out}" in capsys.readouterr().err


def test_left_out_lines_are_told(cascade: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.txt").write_text("one\n# not this\n#1 dad mug\none\n")
    assert run("--prompts-file", str(tmp_path / "p.txt"), "--out", str(tmp_path / "out")) == 0
    assert "p.txt: 2 prompts; left out: 1 as comment, 1 as repeated" in capsys.readouterr().err
    assert cascade.calls[0]["prompts"] == ["one", "#1 dad mug"]


def test_adapters_reach_the_cascade(cascade: Recorder, tmp_path: Path) -> None:
    out = str(tmp_path / "a.png")
    with pytest.raises(SystemExit) as caught:
        main(["sample", "run", "a cat", "--out", out, "--adapter", "a.safetensors:0.8", "--adapter", "base=runs/one"])
    assert caught.value.code == 0
    assert cascade.adapters == ["a.safetensors:0.8", "base=runs/one"]


def test_images_to_vary_are_read_as_training_images_are(cascade: Recorder, tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGBA", (5, 4), colour).save(tmp_path / f"{name}.png")
    ends = ["--variations-of", str(tmp_path / "a.png"), "--to-image", str(tmp_path / "b.png")]
    assert run("--num", "2", *ends, "--out", str(tmp_path / "x.png")) == 0
    call = cascade.calls[0]
    assert call["prompts"] == [""] and call["variations_of"].mode == "RGB"
    assert call["to_image"].getpixel((0, 0)) == (0, 0, 255) and not call["to_prompt"]
    assert run("--variations-of", str(tmp_path / "none.png"), "--out", str(tmp_path / "y.png")) == 2
