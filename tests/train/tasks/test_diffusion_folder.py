"""Fine-tuning a stage in diffusers' layout in the training loop: its config, its text, and back into diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from dataprep.io.errors import UserError
from dataprep.io.storage import read_json_lines
from dataprep.text.config import EmbedConfig
from dataprep.text.embed import embed_shard, load_encoder
from eval.sampling.config import SamplingConfig
from tests.helpers.diffusers_folders import SCHEDULER, build_pipeline, save_pipeline
from tests.helpers.packs import write_embeddings, write_pack
from tests.helpers.toys import short_config
from train.loader.loader import Loader
from train.loop import train
from train.models.backbones import read_folder_stage, write_folder_stage
from train.models.export import load_stage
from train.tasks.diffusion import DiffusionTask, read_empty_text
from train.tasks.diffusion_config import DiffusionStageConfig, DiffusionTrainingConfig

pytest.importorskip("diffusers")
EMBED = EmbedConfig(max_length=77, pad=True, lowercase=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("if") / "one")


class FineTuning(DiffusionTask):
    """The task, beginning from the weights of a folder."""

    folder: Path

    def build(self) -> nn.Module:
        model = super().build()
        model.load_state_dict(load_stage(self.folder)[0].state_dict())
        return model


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stage_is_tuned_and_goes_back_to_diffusers(folder: Path, tmp_path: Path, precision: str) -> None:
    pack = write_pack(tmp_path / "p", 0, 32)
    embed_shard(pack, tmp_path / "e", load_encoder(str(folder), EMBED), EMBED)
    task = FineTuning(DiffusionStageConfig(resolution=16, model=str(folder)), 32, read_empty_text(str(tmp_path / "e")))
    task.folder = folder
    loader = Loader([pack], [str(tmp_path / "e")], task.columns, "train", 0, 8)
    config = short_config(20, 8, 1e-3).model_copy(update={"precision": precision, "activation_checkpointing": True})
    train(task, config, loader, str(tmp_path / "run"), 0)
    log = read_json_lines(str(tmp_path / "run/log.jsonl"))
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    network, settings = load_stage(tmp_path / "run/export")
    stage = read_folder_stage(str(folder))
    assert stage is not None and settings["trained_steps"] == 20 and network.config == stage.model
    assert settings["diffusion"]["betas"] == stage.diffusion["betas"]
    sampling = SamplingConfig(**(dict(stage.sampling) | {"learned_variance": False})).model_dump(mode="json")
    write_folder_stage(str(tmp_path / "out"), network, settings["diffusion"], sampling, {})
    again = read_folder_stage(str(tmp_path / "out"))
    assert again is not None and again.model == stage.model
    assert again.sampling == dict(stage.sampling) | {"learned_variance": False}
    pipeline = build_pipeline()
    tuned = pipeline.unet.from_pretrained(tmp_path / "out/unet")
    for name, value in network.state_dict().items():
        assert torch.equal(tuned.state_dict()[name.removeprefix("unet.")], value)
    before = load_stage(folder)[0].state_dict()
    assert not torch.equal(before["unet.conv_in.weight"], network.state_dict()["unet.conv_in.weight"])


def test_a_folder_says_what_its_network_and_process_are(folder: Path) -> None:
    config = DiffusionTrainingConfig.model_validate({"resolution": 16, "model": str(folder), "steps": 5})
    stage = read_folder_stage(str(folder))
    assert stage is not None
    assert config.denoiser_config(32) == stage.model and config.diffusion.prediction == "eps"
    assert config.diffusion.betas.kind == SCHEDULER["beta_schedule"]
    again = DiffusionTrainingConfig.model_validate(config.model_dump(mode="json"), strict=False)
    assert again == config  # so it does not need the folder any more
    own = DiffusionStageConfig.model_validate(
        {"resolution": 16, "model": str(folder), "diffusion": {"weighting": "min_snr"}}
    )
    assert own.diffusion.weighting == "min_snr" and own.diffusion.schedule == "discrete"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion": {"schedule": "cosine"}}, "diffusion.schedule=cosine: model=.* has learned discrete; set it to"),
        ({"diffusion": {"betas": {"kind": "linear"}}}, "diffusion.betas=.*linear.*has learned .*squaredcos_cap_v2"),
        ({"low_resolution": 8}, "is not a super-resolution model"),
        ({"crop": 8}, "has self-attention, which is another on whole images"),
        ({"token_drop": 0.1}, "reads padding, so a hidden token is not as if it were missing; set it to 0"),
        ({"resolution": 15}, "needs sizes that are multiples of 2"),
        ({"model": "hf://DeepFloyd/IF-I-XL-v1.0"}, "download it .`hf download DeepFloyd/IF-I-XL-v1.0`. and give the"),
    ],
)
def test_a_config_that_does_not_fit_the_folder(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DiffusionStageConfig.model_validate({"resolution": 16, "model": str(folder)} | changes)


def test_embeddings_without_padding_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"e: embedded without padding, which the network reads; set embed.pad: true"):
        read_empty_text(write_embeddings(tmp_path / "e", 0, 8))
