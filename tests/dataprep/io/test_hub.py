"""Models by their name on the hub: what is downloaded, and what is said where the hub does not give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataprep.io.errors import UserError
from dataprep.io.hub import WantedFiles, choose_files, download_model
from train.initial_weights.hub import WANTED as WEIGHTS
from train.models.diffusers_unet.backbone import WANTED as STAGE

PLAIN = [
    "README.md", "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
    "text_encoder/model.safetensors", "tokenizer/spiece.model", "tokenizer/tokenizer_config.json", "unet/config.json",
    "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors", "safety_checker/config.json",
    "safety_checker/model.safetensors", "IF-I-XL-v1.0.ckpt", "whole.safetensors",
]  # fmt: skip
HALF = [
    "text_encoder/model.fp16-00001-of-00002.safetensors", "text_encoder/model.fp16-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.fp16.json", "unet/diffusion_pytorch_model.fp16.safetensors",
]  # fmt: skip
SMALL = [
    "README.md", "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
    "tokenizer/spiece.model", "tokenizer/tokenizer_config.json", "unet/config.json",
]  # fmt: skip
T5 = ["README.md", "config.json", "model.safetensors.index.json", "spiece.model", "tokenizer.json"]
T5_SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_a_stage_is_downloaded_with_its_text_encoder_in_half_the_bytes() -> None:
    weights = ["text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"]
    assert choose_files("a/b", PLAIN, STAGE) == sorted(SMALL + weights)
    assert choose_files("a/b", PLAIN + HALF, STAGE) == sorted(SMALL + HALF)


def test_training_begins_from_the_image_network_in_its_own_precision() -> None:
    """Neither the text encoder nor the single file at the top is downloaded."""
    wanted = ["README.md", "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    assert choose_files("a/b", PLAIN + HALF, WEIGHTS) == wanted
    only_half = [file for file in PLAIN + HALF if file != "unet/diffusion_pytorch_model.safetensors"]
    assert choose_files("a/b", only_half, WEIGHTS) == [*wanted[:3], "unet/diffusion_pytorch_model.fp16.safetensors"]


def test_a_model_that_is_no_pipeline_has_its_weights_at_the_top() -> None:
    others = ["model.fp16.safetensors", "pytorch_model.bin", "onnx/model.safetensors", "onnx/config.json"]
    assert choose_files("a/b", [*T5, *T5_SHARDS, *others], WEIGHTS) == sorted(T5 + T5_SHARDS)


def test_variants_of_which_none_is_half_are_all_taken() -> None:
    variants = ["unet/diffusion_pytorch_model.ema.safetensors", "unet/diffusion_pytorch_model.raw.safetensors"]
    wanted = WantedFiles(folders=(), weights=("unet",), half=True)
    assert choose_files("a/b", variants, wanted) == variants


def test_models_that_lack_what_is_needed() -> None:
    with pytest.raises(UserError, match=r"a/b: no model_index.json; name a model in diffusers' layout"):
        choose_files("a/b", ["config.json"], STAGE)
    with pytest.raises(UserError, match="a/b: no safetensors weights in unet"):
        choose_files("a/b", ["model_index.json", "unet/diffusion_pytorch_model.bin"], STAGE)


def test_a_model_is_downloaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return "/cache/one"

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, name: PLAIN)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for _ in range(2):
        assert download_model("hf://DeepFloyd/once", STAGE) == "/cache/one"
    assert asked == [("DeepFloyd/once", {"allow_patterns": choose_files("", PLAIN, STAGE)})]


def test_without_a_network_the_cache_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any) -> list[str]:
        raise ConnectionError("no\nnetwork")

    def cached(name: str, local_files_only: bool) -> str:
        if name != "known/model":
            raise FileNotFoundError(name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", offline)
    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    assert download_model("hf://known/model", WEIGHTS) == str(tmp_path)
    with pytest.raises(UserError, match=r"hf://un/known: not found on the hub or not reachable \(no network\); check"):
        download_model("hf://un/known", WEIGHTS)
