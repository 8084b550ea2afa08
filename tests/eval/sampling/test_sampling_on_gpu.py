"""Sampling and scoring on a simulated GPU: devices are not mixed, the host does not wait, the images are a CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dataprep.text.encoder import TextEncoder
from eval.sampling import loading, stage_sampler
from eval.sampling.adapters import AdapterChoice, apply_adapters
from eval.sampling.cascade import Cascade
from eval.sampling.config import SamplingConfig
from eval.sampling.stage_sampler import pad_text
from tests.eval.sampling.test_adapters import write_adapter
from tests.helpers.cascades import BASE, WordEncoder, difference, export, trained
from tests.helpers.encoders import save_encoder
from tests.helpers.simulated_gpu import DeviceMixupError, simulated_gpu
from train.diffusion.samplers import SAMPLERS
from train.models.base import Conditions

PROMPTS = ["a cat", "two small dogs"]
IMAGE = Image.fromarray(np.random.default_rng(3).integers(0, 255, (16, 16, 3), np.uint8))
MASK = Image.fromarray(np.where(np.arange(16) < 8, 255, 0).astype(np.uint8)[None].repeat(16, 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("cascade"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For tiny tensors more threads are slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the text encoder by the word encoder."""

    class Loader:
        @staticmethod
        def from_folder(*_: Any, **__: Any) -> WordEncoder:
            return WordEncoder()

    monkeypatch.setattr(loading, "TextEncoder", Loader)


def test_a_gpu_is_taken_if_there_is_one_and_samples_what_a_cpu_does(folder: Path) -> None:
    here = Cascade.from_pretrained(folder)
    assert here.device.type == "cpu"
    with simulated_gpu():
        there = Cascade.from_pretrained(folder)
        weights = there.stages[0].model.state_dict()["out.weight"]
        assert there.device.type == weights.device.type == "cuda" and weights.dtype == torch.bfloat16
        images = there(PROMPTS, seed=1).images
    # The simulated GPU has the CPU's generator, so only bfloat16 differs.
    for ours, theirs in zip(images, here(PROMPTS, seed=1).images, strict=True):
        assert 0 < difference(ours, theirs) < 40
    assert there.digest == here.digest  # of the stored weights


def test_an_adapter_is_merged_into_a_stage_on_the_gpu(folder: Path, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "base.safetensors", trained(BASE))
    here = Cascade.from_pretrained(folder, adapters=[path]).stages[0].model.state_dict()
    with simulated_gpu():
        there = Cascade.from_pretrained(folder, adapters=[path])
        assert [choice.stage for choice in there.adapters] == ["base"]
        assert {value.device.type for value in there.stages[0].model.state_dict().values()} == {"cuda"}
    for name, value in there.stages[0].model.state_dict().items():
        torch.testing.assert_close(value, here[name].bfloat16(), rtol=2e-2, atol=2e-3)  # two roundings or one


def test_an_adapter_is_merged_into_a_text_encoder_on_the_gpu(tmp_path: Path) -> None:
    source = save_encoder(tmp_path / "t5", "t5")
    path = write_adapter(tmp_path / "t5.safetensors", TextEncoder.from_folder(source).model, "text_encoder")
    here = TextEncoder.from_folder(source)
    apply_adapters([AdapterChoice(path)], [], lambda: here)
    with simulated_gpu():
        there = TextEncoder.from_folder(source, "float32", device="cuda")
        (choice,) = apply_adapters([AdapterChoice(path)], [], lambda: there)
        assert choice.stage == "encoder"
        assert {value.device.type for value in there.model.state_dict().values()} == {"cuda"}
    for name, value in there.model.state_dict().items():
        torch.testing.assert_close(value, here.model.state_dict()[name])


@pytest.mark.parametrize(
    "options",
    [
        *({"sampler": name} for name in SAMPLERS),
        {"image": IMAGE, "strength": 0.6},
        {"image": IMAGE, "mask": MASK, "resample": 2},
        {"image": IMAGE, "start_at": "sr"},
        {"negative": "a red dog on a hill"},
        {"guidance": 1.0, "threshold": "dynamic"},
        {"guidance_rescale": 0.5, "guidance_interval": (0.2, 0.8)},
    ],
    ids=lambda options: "-".join(options) if "sampler" not in options else options["sampler"],
)
def test_steps_do_not_wait_for_the_device(folder: Path, options: dict[str, Any]) -> None:
    """More steps, as many waits: those of the texts, the images and what was given."""
    waits, copies = [], []
    with simulated_gpu() as gpu:
        cascade = Cascade.from_pretrained(folder)
        for steps in (2, 3):
            gpu.forget_counts()
            cascade(PROMPTS, steps=steps, **options)
            waits.append(gpu.waits.total())
            copies.append(gpu.copies.total())
    assert copies[0] == copies[1]
    asks = len(cascade.stages) if "guidance_interval" in options else 0  # an interval asks at each step
    assert waits[1] - waits[0] == asks


def test_a_planted_mixup_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.sampling.cascade_sampler.pad_text", lambda texts, device: pad_text(texts))
    with simulated_gpu(), pytest.raises(DeviceMixupError):
        Cascade.from_pretrained(folder)(PROMPTS)


def test_the_network_gets_a_bounded_number_of_pixels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cascade = Cascade.from_pretrained(folder)
    whole = cascade(PROMPTS, num=3, seed=2).images
    rows: list[tuple[int, int]] = []
    forward = type(cascade.stages[0].model).__call__

    def noted(self: Any, x_BCHW: torch.Tensor, log_snr_B: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        rows.append((x_BCHW.shape[-1], len(x_BCHW)))
        assert all(len(value) == len(x_BCHW) for value in conditions if value is not None)
        return forward(self, x_BCHW, log_snr_B, conditions)

    monkeypatch.setattr(type(cascade.stages[0].model), "__call__", noted)
    monkeypatch.setattr(stage_sampler, "PIXELS", 5 * 16 * 16)
    parts = cascade(PROMPTS, num=3, seed=2).images
    # Guided: twelve rows for six images. At 8 pixels they fit, at 16 five do.
    assert [count for size, count in rows if size == 8] == [12] * 3
    assert [count for size, count in rows if size == 16] == [5, 5, 2] * 3
    assert all(difference(ours, theirs) <= 1 for ours, theirs in zip(parts, whole, strict=True))


def test_one_image_is_never_split(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_sampler, "PIXELS", 1)
    assert Cascade.from_pretrained(folder)("a cat").images[0].size == (16, 16)


def test_prompts_of_one_length_need_no_mask() -> None:
    equal, other = (pad_text([np.ones((2, 8)), np.ones((length, 8))]) for length in (2, 3))
    assert equal.mask_BL is None and other.mask_BL is not None
    assert other.mask_BL.tolist() == [[True, True, False], [True, True, True]]


def test_compiled_stages_are_compiled_when_they_are_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    stages = Cascade.from_pretrained(folder, compiled=True).stages
    assert compiled == [stage.model for stage in stages]


def test_the_default_interval_is_everywhere() -> None:
    assert SamplingConfig().guidance_interval == (0.0, 1.0)
