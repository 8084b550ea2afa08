"""Weights of a stage: whole, in shards, of a variant; missing and damaged ones are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dataprep.io.errors import UserError
from dataprep.io.storage import read_json, write_json
from tests.helpers.diffusers_folders import BASE, build_network, build_pipeline
from train.models.diffusers_unet.folder_weights import load_diffusers_unet_weights
from train.models.export import load_stage

pytest.importorskip("diffusers")
NAME = "diffusion_pytorch_model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_pipeline().save_pretrained(tmp_path / "one")
    return tmp_path / "one"


def test_names_are_those_of_the_wrapper(folder: Path) -> None:
    weights = load_diffusers_unet_weights(folder)
    network = build_network(**BASE).state_dict()
    assert weights.keys() == {f"unet.{name}" for name in network}
    assert all(torch.equal(weights[f"unet.{name}"], value) for name, value in network.items())
    assert load_stage(folder)[0].state_dict().keys() == weights.keys()


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard", ["10GB", "200KB"])
def test_shards_and_variants_hold_the_same(folder: Path, variant: str | None, shard: str) -> None:
    network = build_network(**BASE)
    shutil.rmtree(folder / "unet")
    network.to(torch.float16 if variant else torch.float32).save_pretrained(
        folder / "unet", variant=variant, max_shard_size=shard
    )
    files = sorted(path.name for path in (folder / "unet").glob("*.safetensors"))
    assert (len(files) > 1) == (shard == "200KB") and all(("fp16" in name) == bool(variant) for name in files)
    weights = load_diffusers_unet_weights(folder)
    expected = network.state_dict()
    assert weights.keys() == {f"unet.{name}" for name in expected}
    assert all(torch.equal(weights[f"unet.{name}"], value) for name, value in expected.items())
    model, _ = load_stage(folder)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


def test_full_precision_goes_before_a_variant(folder: Path) -> None:
    half = {name: value.half() for name, value in load_file(folder / f"unet/{NAME}.safetensors").items()}
    save_file(half, folder / f"unet/{NAME}.fp16.safetensors")
    assert {value.dtype for value in load_diffusers_unet_weights(folder).values()} == {torch.float32}


def test_missing_and_damaged_weights(folder: Path) -> None:
    path = folder / f"unet/{NAME}.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{NAME}.safetensors: not readable .*; copy the folder again"):
        load_stage(folder)
    path.unlink()
    with pytest.raises(UserError, match=rf"unet: no weights \({NAME}.safetensors\); copy it again"):
        load_stage(folder)
    (folder / f"unet/{NAME}.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"convert the .bin file with diffusers' save_pretrained"):
        load_stage(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    build_network(**BASE).save_pretrained(folder / "unet", max_shard_size="200KB")
    first = min((folder / "unet").glob("*.safetensors"))
    first.unlink()
    with pytest.raises(UserError, match=f"{first.name} is missing, and {NAME}.safetensors.index.json names it"):
        load_stage(folder)


def test_weights_of_another_network(folder: Path) -> None:
    config = folder / "unet/config.json"
    original = read_json(str(config))
    for changes, message in (
        ({"layers_per_block": 2}, r"unet: lacks weights \(.*, \d+ in all\); config.json is of another one"),
        ({"addition_embed_type": None}, r"unet: has unknown weights \(add_embedding"),
        ({"encoder_hid_dim": 16}, r"has shape \(.*\), config.json asks for \("),
    ):
        write_json(str(config), original | changes)
        with pytest.raises(UserError, match=message):
            load_stage(folder)


def test_weights_that_are_not_finite(folder: Path) -> None:
    path = folder / f"unet/{NAME}.safetensors"
    weights = load_file(path)
    weights["conv_in.bias"][0] = torch.nan
    save_file(weights, path)
    with pytest.raises(UserError, match=r"unet: conv_in.bias is not finite; copy the folder again"):
        load_stage(folder)
