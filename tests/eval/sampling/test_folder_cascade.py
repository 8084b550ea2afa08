"""Stages in diffusers' layout against diffusers' own pipelines: text, whole samplings, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dataprep.io.errors import UserError
from eval.sampling.cascade import Cascade
from eval.sampling.config import SamplingConfig
from eval.sampling.folder_cascade import folder_cascade
from eval.sampling.prompts import hash_prompt
from eval.sampling.stage_sampler import AUGMENT, FIRST_STEP, START, SamplerInputs, pad_text, sample_stage
from tests.helpers.diffusers_folders import build_pipeline, save_pipeline
from train.diffusion.noise import sample_noise
from train.diffusion.samplers import SAMPLERS

pytest.importorskip("diffusers")
PROMPTS = ["A red circle", "blue square left of a red circle"]
SEEDS = [(1, hash_prompt(prompt)) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("if")
    return [str(save_pipeline(root / "one")), str(save_pipeline(root / "two", upscaler=True))]


@pytest.fixture(scope="module")
def cascade(folders: list[str]) -> Cascade:
    return Cascade.from_config(folder_cascade(folders))


def play(monkeypatch: pytest.MonkeyPatch, noises: Sequence[Tensor]) -> list[int]:
    """Makes diffusers take ``noises`` in their order as its random numbers; returns a list with the count of them."""
    from diffusers.pipelines.deepfloyd_if import pipeline_if, pipeline_if_superresolution
    from diffusers.schedulers import scheduling_ddpm

    taken = [0]

    def randn(shape: Any, **options: Any) -> Tensor:
        taken[0] += 1
        noise = noises[taken[0] - 1]
        assert tuple(shape) == tuple(noise.shape)
        return noise

    for module in (pipeline_if, pipeline_if_superresolution, scheduling_ddpm):
        monkeypatch.setattr(module, "randn_tensor", randn)
    return taken


def noise_of(size: int) -> Callable[[int], Tensor]:
    """Returns the noise of a purpose that `sample_stage` takes for `SEEDS`."""
    return lambda purpose: sample_noise([(*seed, purpose) for seed in SEEDS], (3, size, size))


def inputs_of(cascade: Cascade, lowres: Tensor | None = None) -> SamplerInputs:
    return SamplerInputs(pad_text(cascade.encoder.encode(PROMPTS)), lowres_BCHW=lowres)


@pytest.mark.parametrize(
    ("steps", "guidance", "scheduler"),
    [
        (100, 7.0, {}),
        (7, 3.0, {"timestep_spacing": "linspace"}),
        (10, 4.0, {"variance_type": "fixed_small", "thresholding": False}),
        (10, 4.0, {"prediction_type": "v_prediction", "beta_schedule": "linear", "num_train_timesteps": 400}),
        (4, 1.5, {"prediction_type": "sample", "beta_schedule": "scaled_linear", "dynamic_thresholding_ratio": 0.8}),
        (10, 1.0, {}),
    ],
)
def test_sampling_the_base_is_that_of_diffusers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    guidance: float,
    scheduler: dict[str, Any],
) -> None:
    config = folder_cascade([str(save_pipeline(tmp_path, **scheduler))])
    cascade, noise = Cascade.from_config(config), noise_of(16)
    settings = config.stages[0].sampling.model_copy(update={"steps": steps, "guidance": guidance})
    with torch.no_grad():
        ours = sample_stage(cascade.stages[0], settings, inputs_of(cascade), SEEDS)
    taken = play(monkeypatch, [noise(START), *(noise(FIRST_STEP + step) for step in range(steps))])
    theirs = build_pipeline(**scheduler)(
        PROMPTS, num_inference_steps=steps, guidance_scale=guidance, clean_caption=False, output_type="pt"
    ).images
    assert taken[0] == steps  # the start, and every step but the last
    assert float(theirs.std()) > 0.1
    torch.testing.assert_close(ours, theirs.clamp(-1, 1), atol=1e-4, rtol=0)


def test_sampling_the_super_resolution_stage_is_that_of_diffusers(
    cascade: Cascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, noise = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1, noise_of(32)
    stage = cascade.stages[1]
    with torch.no_grad():
        ours = sample_stage(stage, stage.entry.sampling, inputs_of(cascade, small), SEEDS)
    steps = stage.entry.sampling.steps
    assert steps == 50
    play(monkeypatch, [noise(START), noise(AUGMENT), *(noise(FIRST_STEP + step) for step in range(steps))])
    theirs = build_pipeline(upscaler=True)(PROMPTS, image=small, clean_caption=False, output_type="pt").images
    torch.testing.assert_close(ours, theirs.clamp(-1, 1), atol=1e-4, rtol=0)


def test_given_steps_and_a_negative_prompt_are_those_of_diffusers(
    cascade: Cascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, noise = (999, 800, 500, 90, 0), noise_of(16)
    settings = cascade.stages[0].entry.sampling.model_copy(update={"timesteps": steps, "guidance": 5.0})
    negative = pad_text(cascade.encoder.encode(["a square"] * 2))
    with torch.no_grad():
        ours = sample_stage(cascade.stages[0], settings, inputs_of(cascade)._replace(negative=negative), SEEDS)
    play(monkeypatch, [noise(START), *(noise(FIRST_STEP + step) for step in range(5))])
    theirs = build_pipeline()(
        PROMPTS,
        timesteps=list(steps),
        guidance_scale=5.0,
        negative_prompt=["a square"] * 2,
        clean_caption=False,
        output_type="pt",
    ).images
    torch.testing.assert_close(ours, theirs.clamp(-1, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("spacing", ["time", "karras", "leading"])
def test_every_sampler_runs_both_stages(cascade: Cascade, sampler: str, spacing: str) -> None:
    samples = cascade(PROMPTS[0], sampler=sampler, spacing=spacing, steps=4)
    assert {name: images[0].size for name, images in samples.by_stage.items()} == {"base": (16, 16), "sr32": (32, 32)}
    assert np.asarray(samples.images[0]).std() > 5


def test_image_to_image_takes_the_last_of_the_models_own_steps(cascade: Cascade) -> None:
    image = Image.new("RGB", (32, 32), "red")
    near = np.asarray(cascade("a", image=image, strength=0.01, guidance=1, stop_at="base").images[0], np.float32)
    assert np.abs(near - np.asarray(image.resize((16, 16)), np.float32)).mean() < 8


def test_prompts_are_encoded_as_by_diffusers(cascade: Cascade) -> None:
    theirs, empty = build_pipeline().encode_prompt([" A Red CIRCLE", "a"], clean_caption=False)
    ours = torch.from_numpy(np.stack(cascade.encoder.encode([" A Red CIRCLE", "a"])))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for stage in cascade.stages:
        torch.testing.assert_close(stage.model.empty_text_LD, empty[0], atol=1e-5, rtol=0)  # type: ignore[attr-defined]


def test_the_stages_of_folders(folders: list[str]) -> None:
    config = folder_cascade(folders)
    assert [(stage.name, stage.resolution, stage.low_resolution) for stage in config.stages] == [
        ("base", 16, None), ("sr32", 32, 16),
    ]  # fmt: skip
    assert config.encoder == folders[0] and config.max_length == 77
    assert config.encoder_pad and config.encoder_lowercase
    base = config.stages[0].sampling
    assert (base.sampler, base.spacing, base.steps, base.guidance) == ("ddpm", "leading", 100, 7.0)
    assert (base.percentile, base.threshold_max, base.learned_variance) == (0.95, 1.5, True)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([1], "two: a super-resolution stage cannot be the first; name the base"),
        ([0, 0], "--then .*one: a base stage; only super-resolution stages follow"),
        ([0, 1, 0], "--then .*one: a base stage"),
    ],
)
def test_stages_in_the_wrong_order(folders: list[str], order: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        folder_cascade([folders[number] for number in order])


def test_a_stage_that_does_not_follow(folders: list[str], tmp_path: Path) -> None:
    odd = save_pipeline(tmp_path, upscaler=True, network={"sample_size": 40})
    with pytest.raises(UserError, match="40 pixels do not follow 16; take another stage"):
        folder_cascade([folders[0], str(odd)])
    with pytest.raises(UserError, match=r"not a stage in diffusers' layout \(no model_index.json\)"):
        folder_cascade([str(tmp_path / "unet")])


def test_steps_that_the_model_does_not_have(cascade: Cascade) -> None:
    with pytest.raises(UserError, match="steps 1001: spacing leading takes the model's own 1000 steps"):
        cascade("a", steps=1001)
    with pytest.raises(UserError, match="timesteps 1000: the model has steps 0 to 999"):
        cascade("a", timesteps=[1000, 0])
    with pytest.raises(ValueError, match=r"timesteps \[5, 5, 0\] do not fall to 0"):
        SamplingConfig(timesteps=(5, 5, 0))
