"""Stages by their name on the hub: what is downloaded, and what is said where the hub does not give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataprep.io.errors import UserError
from tests.helpers.diffusers_folders import save_pipeline
from train.models.backbones import find_stage_folder
from train.models.diffusers_unet.hub import choose_files

pytest.importorskip("diffusers")
hub = pytest.importorskip("huggingface_hub")
PLAIN = [
    "README.md", "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
    "text_encoder/model.safetensors", "tokenizer/spiece.model", "tokenizer/tokenizer_config.json", "unet/config.json",
    "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors", "safety_checker/config.json",
    "safety_checker/model.safetensors", "IF-I-XL-v1.0.ckpt",
]  # fmt: skip
HALF = [
    "text_encoder/model.fp16-00001-of-00002.safetensors", "text_encoder/model.fp16-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.fp16.json", "unet/diffusion_pytorch_model.fp16.safetensors",
]  # fmt: skip
SMALL = [
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "tokenizer/spiece.model",
    "tokenizer/tokenizer_config.json", "unet/config.json",
]  # fmt: skip


def test_only_what_is_needed_is_downloaded() -> None:
    weights = ["text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"]
    assert choose_files("a/b", PLAIN) == sorted(SMALL + weights)
    assert choose_files("a/b", PLAIN + HALF) == sorted(SMALL + HALF)  # half the bytes


def test_models_that_are_no_stages() -> None:
    with pytest.raises(UserError, match=r"a/b: no model_index.json; name a model in diffusers' layout"):
        choose_files("a/b", ["config.json"])
    with pytest.raises(UserError, match="a/b: no safetensors weights in unet"):
        choose_files("a/b", ["model_index.json", "unet/diffusion_pytorch_model.bin"])


def test_a_stage_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_pipeline(tmp_path / "one")
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    asked: list[Any] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(folder)

    monkeypatch.setattr(hub.HfApi, "list_repo_files", lambda self, name: files)
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert find_stage_folder("hf://DeepFloyd/IF-I-XL-v1.0") == str(folder)
    assert asked == [("DeepFloyd/IF-I-XL-v1.0", {"allow_patterns": choose_files("", files)})]


def test_without_a_network_the_cache_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_pipeline(tmp_path / "one")

    def offline(*_: Any) -> list[str]:
        raise ConnectionError("no network")

    def cached(name: str, local_files_only: bool) -> str:
        if name != "known/model":
            raise FileNotFoundError(name)
        return str(folder)

    monkeypatch.setattr(hub.HfApi, "list_repo_files", offline)
    monkeypatch.setattr(hub, "snapshot_download", cached)
    assert find_stage_folder("hf://known/model") == str(folder)
    with pytest.raises(UserError, match=r"hf://un/known: not found on the hub or not reachable \(no network\); check"):
        find_stage_folder("hf://un/known")
