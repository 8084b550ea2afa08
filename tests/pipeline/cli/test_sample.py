"""``sample``: the options become one request, and JSON describes the images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from eval.sampling.png_metadata import save_png
from pipeline.cli.main import main
from pipeline.inference import sample as inference
from pipeline.inference.sample import SampleRequest


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "RUN").mkdir()
    monkeypatch.chdir(tmp_path)


def run_sample(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], written: list[Path], *words: str
) -> tuple[SampleRequest, str]:
    """Runs ``sample RUN WORDS`` with a cascade that writes ``written``; returns the request and what was printed."""
    requests: list[SampleRequest] = []

    def sample_run(folder: str, request: SampleRequest) -> list[Path]:
        assert folder == "RUN"
        requests.append(request)
        return written

    monkeypatch.setattr(inference, "sample_run", sample_run)
    with pytest.raises(SystemExit) as caught:
        main(["sample", "RUN", *words])
    printed = capsys.readouterr()
    assert caught.value.code == 0, printed.err
    return requests[0], printed.out


def test_options_become_a_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["a cat", "--num", "3", "--seed", "5", "--guidance", "2", "--set", "base.steps=4", "--stage", "base"]
    request, out = run_sample(monkeypatch, capsys, [Path("x.png")], *words, "--negative", "a dog", "--out", "x.png")
    assert (request.prompts, request.out) == (["a cat"], Path("x.png"))
    assert (request.options.num, request.options.seed) == (3, 5)
    assert request.options.changes["guidance"] == 2 and request.options.changes["steps"] is None
    assert request.assignments == ["base.steps=4"]
    assert request.options.stop_at == "base" and request.options.negative == "a dog"
    assert request.options.overlong == "cut" and out == "x.png\n"


def test_variations_need_no_prompt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--variations-of", "a.png", "--num", "5"]
    request, _ = run_sample(monkeypatch, capsys, [Path("x.png")], *words, "--to-image", "b.png")
    assert (request.prompts, request.variations_of, request.to_image) == ([""], Path("a.png"), Path("b.png"))
    request, _ = run_sample(monkeypatch, capsys, [Path("x.png")], "a cat", *words, "--to-prompt", "a dog")
    assert (request.prompts, request.to_image, request.options.to_prompt) == (["a cat"], None, "a dog")
    request, _ = run_sample(monkeypatch, capsys, [Path("x.png")], *words, "--prompts-file", "p.txt")
    assert request.prompts == []


def test_json_describes_each_image_but_not_the_grid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = [
        save_png(tmp_path / f"{n}.png", Image.new("RGB", (4, 4)), {"prompt": f"p{n}", "seed": n}) for n in range(3)
    ]
    _, out = run_sample(monkeypatch, capsys, files, "a cat", "--json")
    found = json.loads(out)
    assert found["files"] == [str(path) for path in files]
    assert [(image["file"], image["prompt"], image["seed"]) for image in found["images"]] == [
        (str(files[1]), "p1", 1),
        (str(files[2]), "p2", 2),
    ]


def test_json_of_a_folder_is_read_from_its_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "images.jsonl").write_text('{"file": "00000-00.png", "prompt": "a cat"}\n')
    _, out = run_sample(monkeypatch, capsys, [tmp_path], "--prompts-file", "p.txt", "--out", str(tmp_path), "--json")
    assert json.loads(out)["images"] == [{"file": f"{tmp_path}/00000-00.png", "prompt": "a cat"}]
