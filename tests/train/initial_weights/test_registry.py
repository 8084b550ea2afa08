"""Every source of initial weights: recognised, its files, its shapes from headers, and its tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dataprep.io.errors import UserError
from dataprep.io.hub import download_model
from tests.helpers import toys
from tests.helpers.cascades import BASE, trained
from tests.helpers.diffusers_folders import build_pipeline
from tests.helpers.encoders import save_encoder
from train.diffusion.config import DiffusionConfig
from train.init_config import InitConfig
from train.initial_weights.base import list_weight_files
from train.initial_weights.file import FILE
from train.initial_weights.fitting import load_initial_weights
from train.initial_weights.library_folders import list_unet_files
from train.initial_weights.registry import WEIGHT_SOURCES, find_weight_source
from train.initial_weights.stage_folder import WEIGHTS
from train.models.adapters.config import AdapterConfig
from train.models.adapters.lora import add_lora
from train.models.backbones import build_denoiser, denoiser_config
from train.models.base import Conditions
from train.models.export import save_stage
from train.models.vq.autoencoder import VqAutoencoder
from train.models.vq.config import PRESETS
from train.models.vq.stage_folder import save_autoencoder


def write_diffusers(folder: Path, shards: int = 1) -> Path:
    """Writes a folder of a pipeline whose U-Net has two tensors, in one file or two."""
    unet = folder / "unet"
    unet.mkdir(parents=True)
    (unet / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    name, tensors = "diffusion_pytorch_model", {"a": torch.ones(2, 3), "b": torch.zeros(4)}
    if shards == 1:
        save_file(tensors, unet / f"{name}.safetensors")
        return folder
    files = {key: f"{name}-{key}.safetensors" for key in tensors}
    for key, file in files.items():
        save_file({key: tensors[key]}, unet / file)
    (unet / f"{name}.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def check(path: str | Path, title: str, kind: str = "ema") -> dict[str, torch.Tensor]:
    """Checks that headers, files and tensors of a source agree; returns its tensors."""
    source = find_weight_source(str(path))
    assert source.title == WEIGHT_SOURCES[title].title
    tensors = dict(source.load(str(path), kind))
    assert dict(source.shapes(str(path), kind)) == {name: tuple(value.shape) for name, value in tensors.items()}
    files = source.list_files(str(path))
    assert all(Path(file).is_file() for file in files) and any(file.endswith(".safetensors") for file in files)
    return tensors


def test_folders_and_files(tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    save_stage(stage, trained(BASE), BASE, DiffusionConfig().model_dump(mode="json"), 5)
    assert check(stage, "stage").keys() == trained(BASE).state_dict().keys()
    assert check(stage / "model.safetensors", "file").keys() == check(stage, "stage").keys()
    assert "shared.weight" in check(save_encoder(tmp_path / "t5", "t5"), "transformers")
    autoencoder = VqAutoencoder(PRESETS["vq-micro"])
    save_autoencoder(tmp_path / "vq", autoencoder.state_dict(), PRESETS["vq-micro"], 5)
    assert check(tmp_path / "vq", "autoencoder").keys() == autoencoder.state_dict().keys()


@pytest.mark.parametrize("shards", [1, 2])
def test_diffusers_layout_whole_and_sharded(tmp_path: Path, shards: int) -> None:
    folder = write_diffusers(tmp_path / "if", shards)
    for path in (folder, folder / "unet"):
        assert check(path, "diffusers").keys() == {"a", "b"}


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("upscaler", [False, True])
def test_a_stage_of_deepfloyds_kind_begins_from_its_folder(tmp_path: Path, upscaler: bool, variant: str | None) -> None:
    """What diffusers saved is in the wrapper, tensor by tensor, and LoRA trains beside it."""
    pipeline = build_pipeline(upscaler)
    pipeline.unet.save_pretrained(tmp_path / "if/unet", variant=variant, max_shard_size="200KB")
    tensors = check(tmp_path / "if", "diffusers")
    assert tensors.keys() == pipeline.unet.state_dict().keys()
    names = {Path(file).name for file in find_weight_source(str(tmp_path / "if")).list_files(str(tmp_path / "if"))}
    assert len(names) > 3 and all(("fp16" in name) == bool(variant) for name in names - {"config.json"})
    settings = {key: value for key, value in pipeline.unet.config.items() if not key.startswith("_")}
    network = denoiser_config("micro-if-sr" if upscaler else "micro-if").unet.model_validate(settings)  # type: ignore[attr-defined]
    model = build_denoiser(denoiser_config("micro-if-sr" if upscaler else "micro-if", {"unet": network}))
    fit = load_initial_weights(model, InitConfig(source=str(tmp_path / "if")))
    assert not fit.describe()
    assert all(torch.equal(value, tensors[name.removeprefix("unet.")]) for name, value in model.state_dict().items())
    add_lora(model, AdapterConfig(rank=2))
    size = int(network.sample_size)
    text = Conditions(text_BLD=torch.randn(1, 5, 32), text_mask_BL=torch.ones(1, 5, dtype=torch.bool))
    if upscaler:
        text = text._replace(lowres_BCHW=torch.randn(1, 3, size, size), lowres_log_snr_B=torch.zeros(1))
    model(torch.randn(1, 3, size, size), torch.zeros(1), text).square().mean().backward()
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert len(trained) > 40 and all(".lora_" in name and value.grad is not None for name, value in trained.items())


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_checkpoint_has_both_kinds_of_weights(tmp_path: Path, zero_stage: int) -> None:
    toys.run(tmp_path, zero_stage=zero_stage)
    ema, raw = (check(tmp_path / "checkpoints", "checkpoint", kind) for kind in ("ema", "raw"))
    exported = load_file(tmp_path / "export/weights.safetensors")
    assert all(torch.equal(ema[name], exported[name]) for name in exported)
    assert not torch.equal(raw["0.weight"], ema["0.weight"])
    newest = tmp_path / "checkpoints/step-00000020"
    assert torch.equal(check(newest, "checkpoint", "raw")["0.weight"], raw["0.weight"])


def test_a_torn_checkpoint_is_refused(tmp_path: Path) -> None:
    toys.run(tmp_path)
    share = tmp_path / "checkpoints/step-00000020/rank-00000.safetensors"
    share.write_bytes(share.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"torn \(rank-00000.safetensors does not match its hash\)"):
        check(share.parent, "checkpoint")


def test_a_hub_model_is_read_like_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_diffusers(tmp_path / "if")
    download_model.cache_clear()
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, name: ["config.json"])
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(folder / name.partition("/")[2]))
    (folder / "model").symlink_to(folder)
    assert check("hf://owner/model", "hub").keys() == {"a", "b"}
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="neither in diffusers' nor in transformers' layout"):
        check("hf://owner/empty", "hub")


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("offline\nmode")

    download_model.cache_clear()
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fail)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UserError, match=r"hf://owner/model: not found on the hub or not reachable \(offline mode\)"):
        check("hf://owner/model", "hub")


def test_what_is_no_source_is_refused_with_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="no weights are found there; name a run, an export, or a hub model"):
        find_weight_source(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no tensors at all", "no whole safetensors file"),
        (b"", "no whole safetensors file"),
        ((8).to_bytes(8, "little") + b"[1, 2]  ", "no whole safetensors file"),
    ],
)
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        find_weight_source(str(path)).shapes(str(path), "ema")


def test_a_truncated_file_is_refused_by_its_header_and_by_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(2, 3)}, path)
    check(path, "file")
    path.write_bytes(path.read_bytes()[:-1])
    for read in (FILE.shapes, FILE.load):
        with pytest.raises(UserError, match=r"weights\.safetensors: is no whole safetensors file .*; save it again"):
            read(str(path), "ema")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": null}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_refused(tmp_path: Path, content: str) -> None:
    folder = write_diffusers(tmp_path / "if", shards=2)
    for path in (folder / "unet/diffusion_pytorch_model", tmp_path / "model"):
        Path(f"{path}.safetensors.index.json").write_text(content)
    for list_files in (lambda: list_unet_files(str(folder)), lambda: list_weight_files(str(tmp_path), WEIGHTS)):
        with pytest.raises(UserError, match=r"index\.json: is no index of weights .*; copy the whole model again"):
            list_files()


def test_missing_weights_of_a_folder_are_named(tmp_path: Path) -> None:
    folder = write_diffusers(tmp_path / "if")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no diffusion_pytorch_model\.safetensors"):
        find_weight_source(str(folder)).list_files(str(folder))


def test_settings_that_are_no_json_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: is no JSON"):
        find_weight_source(str(tmp_path))
