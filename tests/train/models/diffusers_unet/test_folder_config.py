"""The JSON files of a stage: what they say in this project's terms, and wrong folders with one useful line each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from dataprep.io.errors import UserError
from dataprep.io.storage import read_json, write_json
from tests.helpers.diffusers_folders import save_pipeline
from train.models.backbones import find_stage_folder, read_folder_stage

pytest.importorskip("diffusers")
UNET, SCHEDULER, INDEX = "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("saved") / "two", upscaler=True)


def change(name: str, **keys: Any) -> Callable[[Path], None]:
    """Returns a function that changes keys of a JSON file; None removes one."""

    def apply(folder: Path) -> None:
        content = {key: value for key, value in (read_json(str(folder / name)) | keys).items() if value is not None}
        write_json(str(folder / name), content)

    return apply


def replace(name: str, text: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_text(text)

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def test_the_super_resolution_stage(saved: Path) -> None:
    stage = read_folder_stage(str(saved))
    assert stage is not None
    assert stage.resolution == 32 and stage.model.lowres and stage.model.text_dim == 32
    assert stage.diffusion["prediction"] == "eps" and stage.diffusion["lowres_align_corners"] is True
    assert stage.diffusion["lowres_betas"]["kind"] == "squaredcos_cap_v2"
    assert stage.sampling["lowres_level"] * 999 == pytest.approx(250)
    assert (stage.sampling["steps"], stage.sampling["guidance"], stage.sampling["threshold_max"]) == (50, 4.0, 1.0)


@pytest.mark.parametrize(
    ("keys", "sampling"),
    [
        ({"thresholding": False}, {"threshold": "static", "learned_variance": True}),
        ({"thresholding": False, "clip_sample": False}, {"threshold": "none"}),
        ({"variance_type": "fixed_small", "timestep_spacing": "linspace"}, {"learned_variance": False}),
        ({"dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.5}, {"percentile": 0.9, "threshold_max": 2.5}),
    ],
)
def test_the_sampler_settings_of_a_scheduler(
    saved: Path, tmp_path: Path, keys: dict[str, Any], sampling: dict[str, Any]
) -> None:
    shutil.copytree(saved, tmp_path / "two")
    change(SCHEDULER, **keys)(tmp_path / "two")
    stage = read_folder_stage(str(tmp_path / "two"))
    assert stage is not None and sampling.items() <= stage.sampling.items()


def test_folders_of_another_kind_are_left_to_others(tmp_path: Path) -> None:
    assert read_folder_stage(str(tmp_path)) is None and read_folder_stage(str(tmp_path / "none")) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (replace(INDEX, "{"), r"model_index.json: not JSON"),
        (replace(INDEX, "[]"), r"model_index.json: not a JSON object; give a whole folder"),
        (
            change(INDEX, _class_name="StableDiffusionPipeline"),
            "a StableDiffusionPipeline is not supported; give a",
        ),
        (change(INDEX, _class_name="UnCLIPPipeline"), "a UnCLIPPipeline is not supported"),
        (change(INDEX, _class_name="IFPipeline"), "in_channels=6 does not fit the IFPipeline of model_index.json"),
        (remove(UNET), "unet/config.json is missing; give a whole folder in diffusers' layout"),
        (remove(SCHEDULER), "scheduler/scheduler_config.json is missing"),
        (remove("image_noising_scheduler/scheduler_config.json"), "image_noising_scheduler/.* is missing"),
        (change(UNET, _class_name="UNet2DModel"), "a UNet2DModel is not supported; it must be a UNet2DConditionModel"),
        (change(UNET, in_channels=4), "config.json: in_channels=4 is not supported: input should be 3 or 6"),
        (change(UNET, in_channels=3), "in_channels=3 with class_embed_type=timestep: a super-resolution model"),
        (change(UNET, addition_embed_type="text_image"), "addition_embed_type='text_image' is not supported"),
        (change(UNET, encoder_hid_dim_type="image_proj"), "encoder_hid_dim_type='image_proj' is not supported"),
        (change(UNET, brand_new=1), "brand_new=1 is not supported: the key is unknown"),
        (change(UNET, block_out_channels=None), "block_out_channels is missing; add it"),
        (change(UNET, sample_size=None), "sample_size is missing; set it to the height and width of the images"),
        (
            change(SCHEDULER, _class_name="DDIMScheduler"),
            "a DDIMScheduler is not supported; it must be a DDPM",
        ),
        (change(SCHEDULER, beta_schedule="sigmoid"), "beta_schedule='sigmoid' is not supported"),
        (change(SCHEDULER, variance_type="fixed_large"), "variance_type='fixed_large' is not supported"),
        (change(SCHEDULER, timestep_spacing="trailing"), "timestep_spacing='trailing' is not supported"),
        (change(SCHEDULER, steps_offset=1), "steps_offset=1 is not supported"),
        (change(SCHEDULER, rescale_betas_zero_snr=True), "rescale_betas_zero_snr=True is not supported"),
        (change(SCHEDULER, thresholding=False, clip_sample_range=2.0), "clip_sample_range=2.0: only 1.0 is supported"),
        (change(UNET, out_channels=3), "variance_type=learned_range, and the network has no learned variance"),
    ],
)
def test_wrong_folders(saved: Path, tmp_path: Path, wrong: Callable[[Path], None], message: str) -> None:
    folder = tmp_path / "two"
    shutil.copytree(saved, folder)
    wrong(folder)
    with pytest.raises(UserError, match=message) as caught:
        read_folder_stage(str(folder))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_folder_on_an_object_store(saved: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(saved), "/stages/two", recursive=True)
    stage, local = read_folder_stage("memory://stages/two"), find_stage_folder("memory://stages/two")
    expected = read_folder_stage(str(saved))
    assert stage is not None and expected is not None and stage.model == expected.model
    assert local is not None and (Path(local) / "unet/config.json").is_file()
    assert find_stage_folder("memory://stages/none") is None
    fs.rm("/stages", recursive=True)
