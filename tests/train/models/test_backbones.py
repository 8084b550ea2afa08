"""The backbone registry; a backbone registered from outside trains, exports, loads and samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from dataprep.io.errors import UserError
from dataprep.io.storage import read_json, read_json_lines
from eval.sampling.config import SamplingConfig, StageEntry
from eval.sampling.stage_sampler import LoadedStage, SamplerInputs, pad_text, sample_stage
from tests.helpers.diffusers_folders import save_pipeline
from tests.helpers.packs import make_embedding, write_embeddings, write_pack
from tests.helpers.toys import short_config
from train.diffusion.config import DiffusionConfig
from train.loader.loader import Loader
from train.loop import train
from train.models.backbones import BACKBONES, backbone_name, build_denoiser, denoiser_config, find_stage_folder
from train.models.base import Backbone, Conditions, DenoiserConfig, check_conditions
from train.models.export import load_stage
from train.tasks.diffusion import DiffusionTask
from train.tasks.diffusion_config import DiffusionStageConfig

SUPPORTED = ("text_BLD", "text_mask_BL", "text_keep_B")


class ConvNetConfig(DenoiserConfig):
    """Config of the dummy backbone."""

    width: int = Field(8, ge=1)

    def size_multiple(self) -> int:
        return 1


class ConvNet(nn.Module):
    """Two convolutions, shifted by the mean token."""

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        self.config = config
        self.text, self.first = nn.Linear(config.text_dim, config.width), nn.Conv2d(3, config.width, 3, padding=1)
        self.second = nn.Conv2d(config.width, 3, 3, padding=1)

    def forward(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        check_conditions(conditions, SUPPORTED, "convnet")
        assert conditions.text_BLD is not None
        shift_BC = self.text(conditions.text_BLD.mean(1)) + log_snr_B[:, None].tanh()
        return self.second(torch.relu(self.first(x_BCHW) + shift_BC[:, :, None, None]))


@pytest.fixture
def convnet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registers the dummy backbone."""
    monkeypatch.setitem(BACKBONES, "convnet", Backbone(ConvNetConfig, {"conv-8": ConvNetConfig()}, ConvNet, SUPPORTED))
    yield


@pytest.mark.usefixtures("convnet")
def test_a_new_backbone_trains_exports_and_samples(tmp_path: Path) -> None:
    pack, embed = write_pack(tmp_path / "p", 0, 32), write_embeddings(tmp_path / "e", 0, 32)
    stage = DiffusionStageConfig(resolution=16, model="conv-8", model_overrides={"width": 12})
    task = DiffusionTask(stage, text_dim=8)
    loader = Loader([pack], [embed], task.columns, "train", 0, 8)
    train(task, short_config(20, 8, 1e-2), loader, str(tmp_path / "run"), 0)
    log = read_json_lines(str(tmp_path / "run/log.jsonl"))
    assert log[-1]["loss"] < log[0]["loss"]
    assert read_json(str(tmp_path / "run/export/config.json"))["backbone"] == "convnet"
    model, settings = load_stage(tmp_path / "run/export")
    assert isinstance(model, ConvNet) and model.config == ConvNetConfig(width=12, text_dim=8)
    loaded = LoadedStage(
        StageEntry(name="base", resolution=16, path="export"), model, DiffusionConfig(**settings["diffusion"])
    )
    image = sample_stage(loaded, SamplingConfig(steps=3), SamplerInputs(pad_text([make_embedding(0)])), [(0, 0)])
    assert image.shape == (1, 3, 16, 16) and bool(image.isfinite().all()) and float(image.std()) > 0


@pytest.mark.usefixtures("convnet")
def test_a_backbone_refuses_conditions_that_it_does_not_support() -> None:
    model = build_denoiser(denoiser_config("conv-8"))
    conditions = Conditions(torch.zeros(1, 2, 128), lowres_BCHW=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="backbone convnet does not support the condition lowres_BCHW"):
        model(torch.zeros(1, 3, 8, 8), torch.zeros(1), conditions)


def test_preset_names_are_unique() -> None:
    names = [name for backbone in BACKBONES.values() for name in backbone.presets]
    assert len(names) == len(set(names))


def test_every_preset_finds_its_backbone() -> None:
    for name, backbone in BACKBONES.items():
        for preset, config in backbone.presets.items():
            assert denoiser_config(preset) == config and backbone_name(config) == name


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError, match=r"model preset 'big' is unknown; take one of .*tiny-base"):
        denoiser_config("big")


def test_overrides_are_validated() -> None:
    with pytest.raises(ValueError, match="chanels"):
        denoiser_config("micro-base", {"chanels": 3})


def test_a_stage_of_the_hub_is_the_folder_that_it_is_downloaded_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_pipeline(tmp_path / "one")
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, name: files)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(folder))
    assert find_stage_folder("hf://owner/stage") == str(folder)
    assert find_stage_folder(str(tmp_path)) is None
