"""Stages in diffusers' layout through the commands: sampled, exported to both layouts, and back into diffusers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dataprep.io.model_imports import import_diffusers
from dataprep.io.storage import read_json, write_json
from eval.sampling.cascade import Cascade
from eval.sampling.config import SamplingConfig, read_cascade, resolve_paths, write_cascade
from eval.sampling.folder_cascade import folder_cascade
from pipeline.cli.main import main
from tests.helpers.cascades import export as export_unets
from tests.helpers.diffusers_folders import save_pipeline, text_parts

pytest.importorskip("diffusers")
PRIVATE = ("_use_default_values", "_name_or_path")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("if")
    return [save_pipeline(root / "one"), save_pipeline(root / "two", upscaler=True)]


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def draw(folder: Path, **options: Any) -> np.ndarray:
    """Returns an image that diffusers itself samples from a folder."""
    pipeline = import_diffusers().DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(4)
    images = pipeline("a red circle", num_inference_steps=4, generator=generator, output_type="np", **options).images
    return np.asarray(images)


def test_sampling_two_folders(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", folders[0], "--then", folders[1], "a red circle", "--steps", "3", "--out", tmp_path / "a.png"]
    assert run(*words) == 0
    assert Image.open(tmp_path / "a.png").size == (32, 32)
    assert run("inspect", tmp_path / "a.png") == 0
    told = capsys.readouterr().out
    settings = told.partition('"sr32": {')[2].partition("}")[0]
    assert all(part in settings for part in ('"sampler": "ddpm"', '"steps": 3', '"spacing": "leading"')), told
    assert run(*words[:2], *words[4:], "--set", "base.timesteps=[900, 500, 0]") == 0
    assert Image.open(tmp_path / "a.png").size == (16, 16)


def test_back_into_the_layout_it_came_from(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("export", folders[0], out, "--then", folders[1], "--layout", "diffusers") == 0
    assert sorted(path.name for path in out.iterdir()) == ["base", "sr32"]
    small = Image.fromarray(np.random.default_rng(2).integers(0, 255, (16, 16, 3), np.uint8))
    for source, name in zip(folders, ("base", "sr32"), strict=True):
        options = {"image": small} if name == "sr32" else {}
        for file in ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json"):
            before, after = (read_json(str(folder / file)) for folder in (source, out / name))
            assert {key: after[key] for key in before if key not in PRIVATE} == {
                key: before[key] for key in before if key not in PRIVATE
            }, file
        before, after = (load_file(folder / WEIGHTS) for folder in (source, out / name))
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
        image = draw(out / name, **options)
        assert np.array_equal(image, draw(source, **options)) and image.std() > 0.05


def test_our_layout_samples_the_same_and_goes_back(folders: list[Path], tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    assert run("export", folders[0], ours, "--then", folders[1]) == 0
    images = []
    for words in ([folders[0], "--then", folders[1]], [ours]):
        assert run("sample", *words, "A red circle", "--steps", "3", "--out", tmp_path / "a.png") == 0
        images.append(np.asarray(Image.open(tmp_path / "a.png")))
    assert np.array_equal(images[0], images[1])
    assert run("export", ours, tmp_path / "back", "--layout", "diffusers") == 0
    assert np.array_equal(draw(tmp_path / "back/base"), draw(folders[0]))
    cascade = Cascade.from_config(resolve_paths(read_cascade(ours), ours))
    assert [stage.entry.name for stage in cascade.stages] == ["base", "sr32"]


@pytest.mark.parametrize(("guidance", "dynamic"), [(1.0, False), (7.0, True)])
def test_the_threshold_of_a_stage_that_names_none(
    folders: list[Path], tmp_path: Path, guidance: float, dynamic: bool
) -> None:
    ours = tmp_path / "ours"
    assert run("export", folders[0], ours) == 0
    config = read_cascade(ours)
    sampling = SamplingConfig(guidance=guidance)
    write_cascade(
        ours, config.model_copy(update={"stages": [config.stages[0].model_copy(update={"sampling": sampling})]})
    )
    assert run("export", ours, tmp_path / "back", "--layout", "diffusers") == 0
    scheduler = read_json(str(tmp_path / "back/base/scheduler/scheduler_config.json"))
    assert scheduler["thresholding"] is dynamic and scheduler["clip_sample"] is True


def test_other_parts_and_the_licence_go_along(folders: list[Path], tmp_path: Path) -> None:
    source = tmp_path / "one"
    shutil.copytree(folders[0], source)
    (source / "LICENSE.md").write_text("research only")
    (source / "safety_checker").mkdir()
    (source / "safety_checker/config.json").write_text("{}")
    index = read_json(str(source / "model_index.json"))
    entry, words = ["deepfloyd_if", "IFSafetyChecker"], ["transformers", "T5Tokenizer"]
    write_json(str(source / "model_index.json"), index | {"safety_checker": entry, "tokenizer": words})
    assert run("export", source, tmp_path / "out", "--layout", "diffusers") == 0
    out = tmp_path / "out/base"
    assert (out / "LICENSE.md").read_text() == "research only" and (out / "safety_checker/config.json").is_file()
    written = read_json(str(out / "model_index.json"))
    assert written["safety_checker"] == entry and written["requires_safety_checker"] is True
    assert written["watermarker"] == [None, None] and written["tokenizer"] == words


def test_a_text_encoder_of_half_precision_alone(folders: list[Path], tmp_path: Path) -> None:
    source = tmp_path / "one"
    shutil.copytree(folders[0], source)
    shutil.rmtree(source / "text_encoder")
    encoder, _ = text_parts()
    encoder.save_pretrained(source / "text_encoder", variant="fp16")
    assert (source / "text_encoder/model.fp16.safetensors").is_file()
    assert folder_cascade([str(source)]).encoder_dtype == "bfloat16"
    assert folder_cascade([str(folders[0])]).encoder_dtype == "float32"
    assert run("sample", source, "a red circle", "--steps", "2", "--out", tmp_path / "a.png") == 0
    assert run("export", source, tmp_path / "out", "--layout", "diffusers") == 0
    assert np.array_equal(draw(tmp_path / "out/base"), draw(folders[0]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "ONE", "OUT", "--layout", "onnx"], "--layout onnx is unknown; choose one of imagen-ray, diffusers"),
        (["export", "ONE", "ONE"], "one exists; give the name of a new folder"),
        (["export", "ONE", "OUT", "--weights", "raw"], "--weights raw: only of a run with --layout imagen-ray"),
        (["export", "ONE", "OUT", "--licence", "mit"], "--licence: only of a run with --layout imagen-ray"),
        (
            ["export", "ONE", "OUT", "--layout", "diffusers", "--watermark", "me"],
            "--watermark: diffusers' layout has",
        ),
        (["export", "UNETS", "OUT"], "is exported in this layout already; copy it, or give --layout diffusers"),
        (["export", "UNETS", "OUT", "--layout", "diffusers"], "encoder"),
        (
            ["sample", "UNETS", "a", "--then", "TWO"],
            "it follows a stage in diffusers' layout, and",
        ),
        (
            ["sample", "ONE", "a", "--then", "nowhere"],
            "nowhere: not a stage in diffusers' layout (no model",
        ),
        (["sample", "TWO", "a"], "two: a super-resolution stage cannot be the first"),
        (["sample", "hf://", "a"], "hf://: not found on the hub or not reachable"),
    ],
)
def test_wrong_models_and_options(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    places = {"ONE": folders[0], "TWO": folders[1], "OUT": tmp_path / "out", "UNETS": tmp_path / "unets"}
    if "UNETS" in words:
        export_unets(tmp_path / "unets")
    assert run(*(places.get(word, word) for word in words)) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_our_own_networks_have_no_layout_of_another_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.inference import export_stages

    export_unets(tmp_path / "unets")
    monkeypatch.setattr(export_stages, "save_encoder", lambda *_: {})
    assert run("export", tmp_path / "unets", tmp_path / "out", "--layout", "diffusers") == 2
    assert "a network of backbone unet has no layout of another library; only diffusers_unet" in " ".join(
        capsys.readouterr().err.split()
    )
