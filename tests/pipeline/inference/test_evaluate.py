"""``imagen-ray evaluate`` on images, a latent pipeline of diffusers and our cascade; its errors, each one line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pytest
from PIL import Image

from dataprep.io.errors import UserError
from eval.judging.image_folder import match_folder
from eval.sampling.config import CascadeConfig, StageEntry, read_cascade, write_cascade
from eval.sampling.png_metadata import save_png
from eval.sampling.prompt_files import make_prompt
from eval.sampling.prompts import EvalPrompt, scene_prompts
from pipeline.cli.main import main
from pipeline.inference.evaluate import _limit
from tests.helpers.cascades import FAST
from tests.helpers.cascades import export as export_cascade
from tests.helpers.encoders import save_encoder
from tests.helpers.foreign import (
    SCENE_WORDS,
    draw_folder,
    save_answerer,
    save_clip_of_transformers,
    save_dinov2,
    save_latent_pipeline,
    save_small_clip,
    write_prompts,
)
from tests.helpers.paths import ROOT


@dataclass
class World:
    """Folders that the commands read: models, prompts, and images of these prompts."""

    root: Path
    prompts: list[EvalPrompt]
    clip: str
    dino: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    prompts = write_prompts(root / "prompts.txt", 15)
    images = draw_folder(root / "images", prompts)
    (root / "blurred").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(cv2.GaussianBlur(image, (0, 0), 2.0)).save(root / "blurred" / f"{number}.png")
    draw_folder(root / "real", scene_prompts(20, 7), seed=5)
    return World(root, prompts, save_small_clip(root / "clip"), save_dinov2(root / "dino"))


@pytest.fixture
def evaluate(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    monkeypatch.chdir(world.root)

    def call(*words: str) -> dict[str, Any]:
        assert run(*words, "--out", str(tmp_path / "out")) == 0
        return dict(json.loads((tmp_path / "out" / "metrics.json").read_text()))

    return call


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", *words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_images_against_themselves_and_against_blurred_ones(
    evaluate: Callable[..., dict[str, Any]], world: World, tmp_path: Path
) -> None:
    spaces = ("--clip", world.clip, "--features", "clip", "--features", world.dino)
    same = evaluate("images", "--prompts", "prompts.txt", "--reference", "images", *spaces)
    assert same["images"] == 30 and same["evaluated"]["prompts"] == "prompts by the order of file names, one per prompt"
    blurred = evaluate("blurred", "--prompts", "prompts.txt", "--reference", "images", *spaces)
    for name in ("fd_clip", "fd_dino", "cmmd_clip"):
        assert same[name] == pytest.approx(0, abs=1e-9) and blurred[name] > same[name] + 1e-8, name
    assert same["distances"]["dino"]["precision"] == same["distances"]["dino"]["recall"] == 1
    assert blurred["kid_dino"] > same["kid_dino"]
    assert same["composition"]["user"]["all"] == 1 > blurred["composition"]["user"]["all"]
    assert same["distances"]["clip"]["resolution"] == 32 and same["distances"]["dino"]["resolution"] == 28
    assert same["distances"]["clip"]["weights"] == same["clip"]["digest"] != same["distances"]["dino"]["weights"]
    page = (tmp_path / "out" / "report.html").read_text()
    for words in ("imagen-ray evaluate: blurred", "Samples", "dinov2 of transformers", "How it was computed"):
        assert words in page
    assert not (tmp_path / "out" / ".features").exists()
    documented = set(re.findall(r"`(\w+)", (ROOT / "docs" / "metrics.md").read_text()))
    assert {key for key in same if key not in documented} <= {"fd_clip", "fd_dino", "kid_dino", "cmmd_clip"}


def test_memorisation_of_a_folder(evaluate: Callable[..., dict[str, Any]], world: World, tmp_path: Path) -> None:
    training = tmp_path / "training"
    shutil.copytree(world.root / "real", training)
    options = ("--prompts", "prompts.txt", "--clip", world.clip, "--threshold", "0.05")
    quiet = evaluate("images", *options, "--training", str(training))["memorisation"]
    assert quiet["training_images"] == 40 and quiet["samples"]["exact"] == 0 and quiet["warning"] is None
    for number in (0, 4, 9):
        shutil.copy(world.root / "images" / f"{number}.png", training / f"copy{number}.png")
    found = evaluate("images", *options, "--training", str(training))["memorisation"]
    assert {pair["training"] for pair in found["closest"][:3]} == {"copy0.png", "copy4.png", "copy9.png"}
    assert found["samples"]["exact"] == 3
    assert found["warning"].startswith(f"{found['samples']['copies']} of 30 samples are near copies")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Closest pairs" in page and "copy4.png" in page and found["warning"][:40] in page


def test_images_without_prompts(evaluate: Callable[..., dict[str, Any]], world: World, tmp_path: Path) -> None:
    found = evaluate("images", "--reference", "real", "--clip", world.clip, "--limit", "20")
    assert found["clip_score"] is None and found["composition"] == {} and found["images"] == 20
    assert found["fd_clip"] > 0 and "without prompts" in found["evaluated"]["prompts"]
    assert "CLIP nan" not in (tmp_path / "out" / "report.html").read_text()


def test_limit_takes_prompts_of_the_images_or_images_without_prompts(tmp_path: Path) -> None:
    for number in range(12):
        info = {"prompt": f"prompt {number // 2}", "seed": 0, "index": number % 2}
        save_png(tmp_path / f"{number}.png", Image.new("RGB", (8, 8)), info)
    matched = match_folder(tmp_path, None)
    kept = _limit(matched, [], 3, 0)
    assert len(kept.images) == 6 and len({item.prompt.prompt for item in kept.images}) == 3
    assert kept.notes == ["--limit: 6 of 12 images"] and kept == _limit(matched, [], 3, 0)
    assert len({tuple(item.path for item in _limit(matched, [], 3, seed).images) for seed in range(9)}) > 1
    assert _limit(matched, [], 9, 0).images == matched.images
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    plain = match_folder(tmp_path, None)
    assert not plain.prompted and len(_limit(plain, [], 5, 0).images) == 5
    with pytest.raises(UserError, match=r"--limit 1: no image shows one of the prompts drawn by --seed 0; give a high"):
        _limit(matched, [make_prompt("another")], 1, 0)


def test_a_latent_pipeline(evaluate: Callable[..., dict[str, Any]], world: World, tmp_path: Path) -> None:
    folder = save_latent_pipeline(tmp_path / "latent")
    words: tuple[str, ...] = (folder, "--prompts", "prompts.txt", "--reference", "real", "--clip", world.clip)
    words += ("--limit", "6", "--num", "2", "--steps", "2", "--batch-size", "12")
    found = evaluate(*words)
    assert (found["images"], found["candidates"]) == (6, 2)
    assert found["evaluated"]["what"] == "diffusers pipeline" and found["fd_clip"] > 0
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 12
    assert evaluate(*words)["clip_score"] == found["clip_score"]  # the images are there already


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, world: World) -> str:
    folder = export_cascade(tmp_path_factory.mktemp("ours") / "export")
    shutil.rmtree(folder / "encoder")
    save_encoder(folder / "encoder", "t5", SCENE_WORDS, d_model=8)
    shutil.copytree(world.clip, folder / "clip")
    write_cascade(folder, read_cascade(folder).model_copy(update={"clip": "clip"}))
    return str(folder)


def test_our_cascade_with_its_own_clip(evaluate: Callable[..., dict[str, Any]], ours: str) -> None:
    found = evaluate(ours, "--prompts", "prompts.txt", "--reference", "real", "--limit", "5", "--steps", "2")
    assert found["images"] == 5 and found["reference"]["size"] == 16
    assert found["clip"]["model"].endswith("/clip") and found["clip"]["resolution"] == 32
    assert found["evaluated"]["what"] == "exported cascade"


def test_judges_and_their_protocols(evaluate: Callable[..., dict[str, Any]], world: World, tmp_path: Path) -> None:
    pick, vqa = save_clip_of_transformers(tmp_path / "pick"), save_answerer(tmp_path / "vqa")
    header = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple"
    rows = [
        f'{number},"{prompt.prompt}",,1,0,entity - whole,,,is there a red cat ?'
        for number, prompt in enumerate(world.prompts)
    ]
    (tmp_path / "dpg_bench.csv").write_text("\n".join([f"{header},question_natural_language", *rows]))
    words = ("images", "--prompts", str(tmp_path / "dpg_bench.csv"), "--clip", world.clip)
    found = evaluate(*words, "--judge", f"pickscore={pick}", "--judge", f"dpg={vqa}")
    assert found["judges"]["pickscore"]["images"] == found["judges"]["dpg"]["images"] == 30
    assert found["judges"]["pickscore"]["resolution"] == 32 and len(found["judges"]["dpg"]["weights"]) == 16
    assert found["judges"]["dpg"]["values"]["score"]["value"] in (0.0, 1.0)
    assert found["evaluated"]["notes"] == []
    without = evaluate(*words)
    assert len(without["evaluated"]["notes"]) == 1
    assert "whose score needs --judge dpg=PATH: a folder of a model of transformers" in without["evaluated"]["notes"][0]
    assert "prompt file of DPG-Bench" in (tmp_path / "out" / "report.html").read_text()


def test_our_run_is_measured_on_its_own_validation_images(
    evaluate: Callable[..., dict[str, Any]], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: str
) -> None:
    from pipeline.inference import subject
    from tests.helpers.judged import make_run

    made = make_run(tmp_path / "run", 1.0, count=4)
    entry = StageEntry(name="base", resolution=8, path=f"{ours}/base", sampling=FAST)
    cascade = CascadeConfig(stages=[entry], encoder=f"{ours}/encoder", clip=world.clip)
    monkeypatch.setattr(subject, "run_cascade", lambda run: cascade)
    words = (made.root, "--prompts", "prompts.txt", "--limit", "6", "--training", made.root)
    found = evaluate(*words)
    assert found["evaluated"]["what"] == "run"
    assert found["reference"] == {"what": f"validation images of {made.root}", "images": 60, "size": 8}
    assert found["retrieval"]["n"] == 60
    assert found["memorisation"]["training_images"] == 20 and found["memorisation"]["held_out"]["images"] == 60


def test_images_are_audited_as_the_data_of_a_run(
    evaluate: Callable[..., dict[str, Any]], world: World, tmp_path: Path
) -> None:
    from dataprep.io import storage
    from tests.helpers.judged import commit, make_run

    made = make_run(tmp_path / "run", 1.0, count=2)
    labels = {"what": ["a red circle", "a blue square"]}
    commit(made, "annotate", [], {"annotate": {"faces": {"detector": "cascade"}}})
    commit(made, "score", [], {"score": {"labels": labels}})
    facts = {"audit": {"captions": 10, "people": {"women": 3}, "faces": {"0": 7, "1": 3}, "labels": {}}}
    storage.write_json(made.stage_folder("card", "f" * 20) + "/datacard.json", facts)
    commit(made, "card", [], {})
    found = evaluate("images", "--prompts", "prompts.txt", "--clip", world.clip, "--audit", made.root)
    assert sum(found["audit"]["faces"].values()) == sum(found["audit"]["labels"]["what"].values()) == 30
    page = (tmp_path / "out" / "report.html").read_text()
    for part in ("Faces", "Labels by CLIP: what", '<td class="num">30.0%</td>', "<td>women</td>"):
        assert part in page, part
    assert "Labels by CLIP" not in _evaluate_plainly(evaluate, world, tmp_path)


def _evaluate_plainly(evaluate: Callable[..., dict[str, Any]], world: World, tmp_path: Path) -> str:
    evaluate("images", "--prompts", "prompts.txt", "--clip", world.clip)
    return (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("images", "--audit", "nowhere"), "--audit nowhere: not a run; name the run whose training data"),
        (("nowhere", "--prompts", "prompts.txt"), "nowhere: neither a folder of images nor a model; name a folder"),
        (("images", "--prompts", "none.txt"), r"prompts=none\.txt: no such file"),
        (("images", "--prompts", "short.txt"), "4 prompts for 30 images in images; give as many"),
        (("images", "--clip", "ViT-X"), "--clip=ViT-X: not an open_clip model"),
        (("images", "--clip", "ViT-B-32"), "--clip: missing; ViT-B-32 needs trained weights"),
        (("images", "--reference", "nowhere"), "--reference=nowhere: no images and no tars there"),
        (("images", "--training", "nowhere"), "--training=nowhere: no images and no tars there"),
        (("images", "--features", "inception"), "--features: inception's pretrained=None is no local file"),
        (("images", "--features", "unknown"), "--features model=unknown: not an open_clip model"),
        (("images", "--features", "clip", "--features", "clip"), "--features: two models have the same name"),
        (("images", "--judge", "pickscore"), "--judge pickscore: give KIND=PATH"),
        (("images", "--judge", "beauty=x"), "--judge beauty: is unknown; take one of pickscore, hps, aesthetic"),
        (("images", "--judge", "hps=x"), "--judge hps=x is no local file; give the file of its weights"),
        (("images", "--judge", "geneval=dino", "--prompts", "prompts.txt"), "line 1 is none of GenEval's"),
        (("images", "--judge", "geneval=dino"), "--judge geneval lacks protocol"),
        (("damaged",), r"0\.png: not an image that can be read"),
        (("partly",), r"9\.png: not an image that can be read"),
        (("EXPORT",), "--prompts is missing; name a file of prompts"),
    ],
)
def test_wrong_inputs(
    words: tuple[str, ...], message: str, world: World, tmp_path: Path, ours: str,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(world.root)
    (world.root / "short.txt").write_text("a\nb\nc\nd\n")
    (world.root / "damaged").mkdir(exist_ok=True)
    (world.root / "damaged" / "0.png").write_bytes(b"no image")
    shutil.copytree(world.root / "images", world.root / "partly", dirs_exist_ok=True)
    (world.root / "partly" / "9.png").write_bytes((world.root / "images" / "9.png").read_bytes()[:80])
    if "--clip" not in words and words[0] != "EXPORT":
        words = (*words, "--clip", world.clip)
    assert run(*(ours if word == "EXPORT" else word for word in words), "--out", str(tmp_path / "out")) == 2
    told = capfd.readouterr().err.strip()
    assert re.search(message, " ".join(told.split())), told
    assert len([line for line in told.splitlines() if line.startswith("error:")]) == 1
    assert not (tmp_path / "out" / ".features").exists()


def test_out_that_cannot_be_written(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.root)
    (tmp_path / "file").write_text("")
    assert run("images", "--clip", world.clip, "--out", str(tmp_path / "file")) == 2
    assert run("images", "--clip", world.clip, "--out", "s3://bucket/x") == 2


def test_json(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world.root)
    assert run("images", "--clip", world.clip, "--out", str(tmp_path / "out"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 30
