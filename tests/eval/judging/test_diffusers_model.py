"""Latent pipelines of diffusers, made by diffusers: the images of its own call, settings, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataprep.io.errors import UserError
from eval.judging.diffusers_model import DiffusersModel, is_diffusers_folder
from eval.sampling.batch_folder import read_lines, sample_folder
from eval.sampling.options import SamplingOptions
from tests.helpers.foreign import save_latent_pipeline

FAST = {"steps": 2, "guidance": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_latent_pipeline(tmp_path_factory.mktemp("models") / "latent")


@pytest.fixture(scope="module")
def model(folder: str) -> DiffusersModel:
    return DiffusersModel.load(folder)


def test_images_are_those_of_the_pipelines_own_call(model: DiffusersModel) -> None:
    samples = model.sample(
        ["a red circle", "a blue square"], SamplingOptions(num=2, seed=5, batch_size=3, changes=FAST)
    )
    assert samples.prompts == ["a red circle"] * 2 + ["a blue square"] * 2 and samples.indices == [0, 1, 0, 1]
    for number, image in enumerate(samples.images):
        generator = model._generator(5, samples.prompts[number], samples.indices[number])
        own = model.pipeline(samples.prompts[number], num_inference_steps=2, guidance_scale=3.0, generator=generator)
        difference = np.abs(np.asarray(own.images[0], np.int16) - np.asarray(image, np.int16))
        assert image.size == (32, 32) and difference.max() <= 1
    assert len({image.tobytes() for image in samples.images}) == 4
    assert samples.making["settings"] == {"StableDiffusionPipeline": {"num_inference_steps": 2, "guidance_scale": 3.0}}


def test_a_folder_of_its_samples_resumes(model: DiffusersModel, tmp_path: Path) -> None:
    options = SamplingOptions(changes=FAST)
    assert list(sample_folder(model, ["a red circle", "a circle"], tmp_path, options)) == [0, 2]
    assert list(sample_folder(model, ["a red circle", "a circle"], tmp_path, options)) == [2]
    assert [line["model"] for line in read_lines(tmp_path)] == [model.digest] * 2
    with pytest.raises(UserError, match="changes was"):
        list(sample_folder(model, ["a red circle"], tmp_path, SamplingOptions(changes={"steps": 3})))


def test_negative_prompt_and_size(model: DiffusersModel) -> None:
    plain = model.sample(["a circle"], SamplingOptions(changes=FAST)).images[0]
    other = model.sample(["a circle"], SamplingOptions(changes=FAST, negative="red", size=(40, 32))).images[0]
    assert other.size == (40, 32) and plain.size == (32, 32)
    with pytest.raises(UserError, match="strength: StableDiffusionPipeline has no such setting; leave it out"):
        model.sample(["a circle"], SamplingOptions(changes={"strength": 0.5}))


def test_what_is_no_text_to_image_pipeline(folder: str, tmp_path: Path) -> None:
    import diffusers

    assert is_diffusers_folder(folder) and not is_diffusers_folder(tmp_path)
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    network = diffusers.UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, **kinds)
    unconditional: Any = diffusers.DDPMPipeline(network, diffusers.DDPMScheduler())
    unconditional.save_pretrained(tmp_path / "ddpm")
    with pytest.raises(UserError, match="ddpm: DDPMPipeline takes no prompt; give a pipeline that makes images from"):
        DiffusersModel.load(str(tmp_path / "ddpm"))
    shutil.copytree(folder, tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "unet")
    with pytest.raises(UserError, match=r"broken: diffusers cannot load it \(.*\); give a whole folder"):
        DiffusersModel.load(str(tmp_path / "broken"))
    (tmp_path / "broken" / "model_index.json").write_text(json.dumps({"_class_name": "NoSuchPipeline"}))
    with pytest.raises(UserError, match="diffusers cannot load it"):
        DiffusersModel.load(str(tmp_path / "broken"))


def test_a_pipeline_that_needs_an_image_is_refused(folder: str, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "inpaint")
    index = json.loads((tmp_path / "inpaint" / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionDepth2ImgPipeline"
    (tmp_path / "inpaint" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="inpaint: "):
        DiffusersModel.load(str(tmp_path / "inpaint"))


def test_without_diffusers(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"diffusers is not installed.*pip install 'imagen-ray\[diffusers\]'"):
        DiffusersModel.load(folder)


def test_half_precision(folder: str) -> None:
    half = DiffusersModel.load(folder, dtype="bfloat16")
    assert half.pipeline.unet.dtype == torch.bfloat16
