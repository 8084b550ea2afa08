"""The wrapper of diffusers' network against the network itself: outputs, a training step, conditions, dtypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.helpers.diffusers_folders import build_pipeline, save_pipeline
from train.diffusion.config import DiffusionConfig
from train.diffusion.schedules import log_snr_at
from train.loader.sampler import SampleRandom
from train.models.backbones import build_denoiser, denoiser_config, read_folder_stage
from train.models.base import Conditions
from train.models.diffusers_unet.network import DiffusersUNet
from train.models.export import load_stage
from train.tasks.denoising import spread_times
from train.tasks.diffusion import DiffusionTask
from train.tasks.diffusion_config import DiffusionStageConfig

pytest.importorskip("diffusers")
ROWS, TOKENS, WIDTH = 4, 77, 32


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=[False, True], ids=["base", "upscaler"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, bool]:
    """A folder, the pipeline that it was saved from, and whether it is of super-resolution."""
    upscaler = bool(request.param)
    folder = save_pipeline(tmp_path_factory.mktemp("stage"), upscaler)
    return folder, build_pipeline(upscaler), upscaler


@pytest.mark.parametrize("step", [0, 1, 250, 637, 998, 999])
def test_outputs_are_those_of_diffusers(stage: tuple[Path, Any, bool], step: int) -> None:
    folder, pipeline, upscaler = stage
    model, settings = load_stage(folder)
    assert isinstance(model, DiffusersUNet)
    empty, text = normal(TOKENS, WIDTH, seed=1), normal(2, TOKENS, WIDTH, seed=2)
    model.set_empty_text(empty)
    steps, low_steps = torch.tensor([step, 999 - step]), torch.tensor([999 - step, step])
    betas = DiffusionConfig(**settings["diffusion"]).betas
    x, low = normal(2, 3, 16, 16, seed=3), normal(2, 3, 16, 16, seed=4)
    conditions = Conditions(text, text_keep_B=torch.tensor([True, False]))
    if upscaler:
        told = log_snr_at(low_steps / 999, "discrete", betas=betas)
        conditions = conditions._replace(lowres_BCHW=low, lowres_log_snr_B=told)
    with torch.no_grad():
        ours = model(x, log_snr_at(steps / 999, "discrete", betas=betas), conditions)
        theirs = pipeline.unet(
            torch.cat([x, low], 1) if upscaler else x,
            steps,
            encoder_hidden_states=torch.stack([text[0], empty]),
            class_labels=low_steps if upscaler else None,
        ).sample
    assert ours.shape == (2, 6, 16, 16) and float(ours.std()) > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def make_batch(size: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(9)
    pixels = {
        f"pixels_{side}": torch.randint(0, 256, (ROWS, side, side, 3), generator=generator, dtype=torch.uint8)
        for side in (size, size // 2)
    }
    text = {"text_BLD": normal(ROWS, TOKENS, WIDTH, seed=5), "text_mask_BL": torch.ones(ROWS, TOKENS, dtype=torch.bool)}
    return {**pixels, **text, "index": torch.arange(ROWS)}


def diffusers_gradients(pipeline: Any, batch: dict[str, Any], random: SampleRandom, empty: Tensor) -> dict[str, Tensor]:
    """Returns the gradients of a step in the way of diffusers' own training scripts, with the task's random numbers."""
    upscaler = pipeline.unet.config.in_channels == 6
    x0, low = (batch[name].permute(0, 3, 1, 2).float() / 127.5 - 1 for name in sorted(batch) if name[:6] == "pixels")
    if upscaler:
        x0, low = low, x0
    steps = (spread_times(random).double() * 1000).long()
    noise = random.normal("noise", *x0.shape[1:])
    x = pipeline.scheduler.add_noise(x0, noise, steps)
    keep = (random.uniform("keep") >= 0.5)[:, None, None]
    assert 0 < int(keep.sum()) < ROWS
    labels = None
    if upscaler:
        labels = (random.uniform("lowres_level").double() * 999).round().long()
        resized = functional.interpolate(low, x0.shape[2:], mode="bilinear", align_corners=True)
        noised = pipeline.image_noising_scheduler.add_noise(
            resized, random.normal("lowres_noise", *x0.shape[1:]), labels
        )
        x = torch.cat([x, noised], dim=1)
    text = torch.where(keep, batch["text_BLD"], empty)
    output = pipeline.unet(x, steps, encoder_hidden_states=text, class_labels=labels).sample
    prediction, _ = output.chunk(2, dim=1)
    pipeline.unet.zero_grad()
    functional.mse_loss(prediction, noise).backward()
    return {name: parameter.grad for name, parameter in pipeline.unet.named_parameters() if parameter.grad is not None}


def test_a_training_step_has_the_gradients_of_diffusers(stage: tuple[Path, Any, bool]) -> None:
    folder, pipeline, upscaler = stage
    size = 32 if upscaler else 16
    config = DiffusionStageConfig(
        resolution=size, low_resolution=size // 2 if upscaler else None, model=str(folder), text_drop=0.5
    )
    assert config.diffusion.schedule == "discrete" and config.diffusion.prediction == "eps"
    empty = normal(TOKENS, WIDTH, seed=6)
    task = DiffusionTask(config, WIDTH, empty.numpy())
    model = task.build()
    model.load_state_dict(load_stage(folder)[0].state_dict())
    batch, random = make_batch(size), SampleRandom(3, 5, list(range(ROWS)))
    loss, _ = task.loss(model, batch, random)
    loss.backward()
    ours = {name.removeprefix("unet."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    theirs = diffusers_gradients(pipeline, batch, random, empty)
    assert ours.keys() == theirs.keys() and len(ours) > 50
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert largest > 0.1
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-4, rtol=0, msg=name)


@pytest.fixture(scope="module")
def small() -> DiffusersUNet:
    torch.manual_seed(0)
    model = build_denoiser(denoiser_config("micro-if"))
    assert isinstance(model, DiffusersUNet)
    model.set_empty_text(normal(3, WIDTH))
    return model.eval()


def test_short_text_is_filled_with_zeros(small: DiffusersUNet) -> None:
    x, at, text = normal(2, 3, 8, 8), torch.zeros(2), normal(2, 5, WIDTH)
    filled = functional.pad(text, (0, 0, 0, TOKENS - 5))
    with torch.no_grad():
        assert torch.equal(small(x, at, Conditions(text)), small(x, at, Conditions(filled)))
        dropped = small(x, at, Conditions(text, text_keep_B=torch.tensor([True, False])))
        kept = small(x, at, Conditions(text))
        assert torch.equal(kept[0], dropped[0]) and not torch.equal(kept[1], dropped[1])


def test_casting_the_network_keeps_the_noise_schedule(small: DiffusersUNet) -> None:
    with torch.no_grad():
        x, at, text = normal(1, 3, 8, 8), torch.tensor([1.234]), normal(1, TOKENS, WIDTH)
        exact = small(x, at, Conditions(text))
        half = build_denoiser(small.config)
        half.load_state_dict(small.state_dict())
        half = half.to(torch.bfloat16)
        output = half(x.bfloat16(), at, Conditions(text.bfloat16()))
        assert output.dtype == torch.bfloat16
        assert float((output.float() - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_recomputation_changes_nothing(small: DiffusersUNet) -> None:
    gradients = []
    for recompute in (False, True):
        model = build_denoiser(small.config).train()
        assert isinstance(model, DiffusersUNet)
        model.load_state_dict(small.state_dict())
        if recompute:
            model.enable_recompute()
        model(normal(1, 3, 8, 8), torch.zeros(1), Conditions(normal(1, 7, WIDTH))).square().mean().backward()
        gradients.append(model.unet.conv_in.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("size", "conditions", "message"),
    [
        (7, {}, "image of .7, 7. pixels; height and width must be multiples of 2"),
        (8, {"text_BLD": None}, "diffusers_unet needs text_BLD"),
        (8, {"text_BLD": torch.zeros(1, 78, WIDTH)}, "text of 78 tokens; the network takes 77"),
        (8, {"lowres_BCHW": torch.zeros(1, 3, 8, 8)}, "this network takes no low-resolution image"),
        (8, {"image_embedding_BE": torch.zeros(1, 8)}, "does not support the condition image_embedding_BE"),
    ],
)
def test_wrong_inputs(small: DiffusersUNet, size: int, conditions: dict[str, Any], message: str) -> None:
    given = Conditions(torch.zeros(1, TOKENS, WIDTH))._replace(**conditions)
    with pytest.raises(ValueError, match=message):
        small(torch.zeros(1, 3, size, size), torch.zeros(1), given)


def test_what_a_network_needs(small: DiffusersUNet) -> None:
    text, keep = torch.zeros(1, TOKENS, WIDTH), torch.ones(1, dtype=torch.bool)
    with pytest.raises(ValueError, match="needs the encoder's output for the empty text; call set_empty_text"):
        build_denoiser(small.config)(torch.zeros(1, 3, 8, 8), torch.zeros(1), Conditions(text, text_keep_B=keep))
    upscaler = build_denoiser(denoiser_config("micro-if-sr"))
    with pytest.raises(ValueError, match="a super-resolution network needs lowres_BCHW and lowres_log_snr_B"):
        upscaler(torch.zeros(1, 3, 8, 8), torch.zeros(1), Conditions(text))


def test_the_stage_of_a_folder_names_its_parts(stage: tuple[Path, Any, bool]) -> None:
    folder, _, upscaler = stage
    found = read_folder_stage(str(folder))
    assert found is not None
    assert found.model.lowres == upscaler and found.resolution == (32 if upscaler else 16)
    assert found.model.caption_tokens() == TOKENS and found.encoder == str(folder)
    assert found.model.needs_whole_images() == (None if upscaler else "self-attention")
