"""Sampling with a refinement stage, alone and in a cascade."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eval.sampling.cascade import Cascade
from eval.sampling.code_sampler import hide_edit, sample_codes
from eval.sampling.config import SamplingConfig, StageEntry, read_cascade, resolve_paths
from eval.sampling.generators import GENERATORS, generate
from eval.sampling.loading import load_stages
from eval.sampling.stage_sampler import LoadedStage, SamplerInputs, StageEdit, pad_text
from tests.helpers.cascades import FAST, WordEncoder, export, trained
from train.models.backbones import BACKBONES
from train.models.base import DenoiserConfig
from train.models.refiner.config import PRESETS
from train.models.refiner.refiner import Refiner

REFINER = PRESETS["refiner-micro"].model_copy(update={"text_dim": 8})
SEEDS = [(0, row) for row in range(3)]


def make_stage() -> LoadedStage:
    """Returns a stage of random weights whose codebook is not zero."""
    from train.diffusion.config import DiffusionConfig

    model = trained(REFINER).eval().requires_grad_(False)
    torch.nn.init.normal_(model.autoencoder.codebook)
    entry = StageEntry(name="sr", resolution=16, low_resolution=8, path="sr")
    return LoadedStage(entry, model, DiffusionConfig(lowres_max_level=0.3))


def make_inputs(**more: Any) -> SamplerInputs:
    text = pad_text([np.random.default_rng(row).normal(size=(2 + row, 8)).astype(np.float32) for row in range(3)])
    return SamplerInputs(text, lowres_BCHW=torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), **more)


def part_of(inputs: SamplerInputs, row: int) -> SamplerInputs:
    assert inputs.lowres_BCHW is not None
    text = inputs.text.tokens_BLD[row : row + 1], inputs.text.mask_BL[row : row + 1]  # type: ignore[index]
    return inputs._replace(text=type(inputs.text)(*text), lowres_BCHW=inputs.lowres_BCHW[row : row + 1])


@pytest.mark.parametrize("settings", [SamplingConfig(steps=4), SamplingConfig(steps=4, guidance=1.0, temperature=0)])
def test_an_image_does_not_depend_on_its_batch(settings: SamplingConfig) -> None:
    stage, inputs = make_stage(), make_inputs()
    whole = sample_codes(stage, settings, inputs, SEEDS)
    assert whole.shape == (3, 3, 16, 16) and float(whole.abs().max()) <= 1
    alone = sample_codes(stage, settings, part_of(inputs, 1), SEEDS[1:2])
    assert torch.allclose(alone[0], whole[1], atol=1e-4)


def test_settings_matter() -> None:
    stage, inputs = make_stage(), make_inputs()
    base: dict[str, Any] = {"steps": 4, "guidance": 2.0, "temperature": 1.0, "lowres_level": 0.1}
    before = sample_codes(stage, SamplingConfig(**base), inputs, SEEDS)
    for changes in ({"steps": 1}, {"guidance": 9.0}, {"temperature": 0.0}, {"lowres_level": 0.3}):
        assert not torch.equal(sample_codes(stage, SamplingConfig(**(base | changes)), inputs, SEEDS), before), changes
    negative = pad_text([np.ones((1, 8), np.float32)] * 3)
    assert not torch.equal(
        sample_codes(stage, SamplingConfig(**base), inputs._replace(negative=negative), SEEDS), before
    )


def test_a_stage_that_was_trained_without_text_gets_none() -> None:
    reading, inputs = make_stage(), make_inputs()
    blind = replace(reading, entry=reading.entry.model_copy(update={"text": False}))
    other = inputs._replace(text=pad_text([np.full((4, 8), 3.0, np.float32)] * 3))
    for guidance in (1.0, 3.0):
        settings = SamplingConfig(steps=4, guidance=guidance, temperature=0)
        for stage, same in ((blind, True), (reading, False)):
            one, two = (sample_codes(stage, settings, given, SEEDS) for given in (inputs, other))
            assert torch.equal(one, two) == same, guidance


def test_without_a_mask_a_share_of_the_codes_is_drawn_anew() -> None:
    order = torch.rand(3, 4, 4)
    for strength, count in ((0.25, 4), (1.0, 16), (0.01, 1)):
        hidden = hide_edit(StageEdit(torch.zeros(1, 3, 16, 16)), order, 4, strength)
        assert hidden.flatten(1).sum(1).tolist() == [count] * 3
    stage, image = make_stage(), torch.rand(1, 3, 16, 16) * 2 - 1
    made = [
        sample_codes(stage, SamplingConfig(strength=strength, steps=4), make_inputs(edit=StageEdit(image)), SEEDS)
        for strength in (0.05, 1.0)
    ]
    model = stage.model
    assert isinstance(model, Refiner) and model.autoencoder is not None
    own = model.autoencoder.decode(model.autoencoder.encode(image)).clamp(-1, 1)
    errors = [float((one - own).abs().mean()) for one in made]
    assert 0 < errors[0] < 0.5 * errors[1]


def test_with_a_mask_what_is_shown_stays() -> None:
    stage, image = make_stage(), torch.rand(1, 3, 16, 16) * 2 - 1
    hidden = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    hidden[:, :, :6, :6] = True
    made = sample_codes(stage, SamplingConfig(steps=3), make_inputs(edit=StageEdit(image, hidden)), SEEDS)
    shown = ~hidden.expand_as(made)
    assert torch.equal(made[shown], image.expand_as(made)[shown])
    assert not torch.equal(made, image.expand_as(made))


def test_every_task_that_trains_a_stage_generates() -> None:
    # A prior makes an embedding, of which other stages make images.
    assert {backbone.task for backbone in BACKBONES.values()} - {"prior"} <= set(GENERATORS)
    stage, inputs, settings = make_stage(), make_inputs(), SamplingConfig(steps=2)
    assert torch.equal(generate(stage, settings, inputs, SEEDS), sample_codes(stage, settings, inputs, SEEDS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cascade of a diffusion base and a refinement stage."""
    from tests.helpers import cascades

    made = tmp_path_factory.mktemp("cascade")
    config: DenoiserConfig = REFINER
    return export(made, cascades.BASE, config)


def test_it_stands_in_a_cascade(folder: Path) -> None:
    cascade = Cascade(load_stages(resolve_paths(read_cascade(folder), folder), "cpu"), WordEncoder())
    samples = cascade("a red square", num=2, seed=3)
    assert [image.size for image in samples.images] == [(16, 16)] * 2
    assert np.array_equal(np.asarray(cascade("a red square", num=2, seed=3).images[1]), np.asarray(samples.images[1]))
    larger = cascade("a red square", size=(32, 16)).images[0]
    assert larger.size == (32, 16)
    image = Image.fromarray(np.full((8, 8, 3), 99, np.uint8))
    assert cascade("a red square", image=image, start_at="sr").images[0].size == (16, 16)
    mask = Image.fromarray(np.pad(np.full((8, 4), 255, np.uint8), ((0, 0), (4, 0))))
    edited = np.asarray(cascade("a red square", image=image, mask=mask).images[0])
    assert bool((edited[:, :6] == 99).all()) and FAST.steps == 3
