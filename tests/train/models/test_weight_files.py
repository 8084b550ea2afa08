"""Weights in one file and in shards: the same tensors, the libraries' layout, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import load_torch_model
from safetensors.torch import save_file
from torch import nn

from dataprep.io.errors import UserError
from train.models.weight_files import (
    INDEX_FILE,
    WEIGHTS_FILE,
    count_parameters,
    has_weights,
    list_weight_files,
    load_tensors,
    save_tensors,
)


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 16), nn.Linear(16, 4))


def test_one_file_is_that_of_safetensors(tmp_path: Path) -> None:
    weights = make_model().state_dict()
    save_tensors(tmp_path, weights)
    save_file({name: weights[name].contiguous() for name in sorted(weights)}, tmp_path / "other.safetensors")
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == (tmp_path / "other.safetensors").read_bytes()
    assert has_weights(tmp_path) and not (tmp_path / INDEX_FILE).exists()
    assert count_parameters(tmp_path) == (sum(value.numel() for value in weights.values()), "float32")


def test_shards_hold_the_same_tensors(tmp_path: Path) -> None:
    weights = make_model().state_dict()
    save_tensors(tmp_path, weights, max_bytes=1500)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    found = load_tensors(tmp_path)
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == 4 * sum(value.numel() for value in weights.values())
    assert index["weight_map"].keys() == weights.keys()
    assert count_parameters(tmp_path)[0] == sum(value.numel() for value in weights.values())
    other = make_model(1)
    load_torch_model(other, tmp_path)  # the hub's library reads them
    assert all(torch.equal(value, weights[name]) for name, value in other.state_dict().items())


def test_a_later_call_leaves_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    save_tensors(tmp_path, make_model(0).state_dict(), max_bytes=1500)
    save_tensors(tmp_path, make_model(1).state_dict())
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS_FILE]
    save_tensors(tmp_path, make_model(2).state_dict(), max_bytes=1500)
    assert not (tmp_path / WEIGHTS_FILE).exists()
    assert torch.equal(load_tensors(tmp_path)["0.weight"], make_model(2).state_dict()["0.weight"])


def test_half_precision(tmp_path: Path) -> None:
    weights = make_model().state_dict()
    save_tensors(tmp_path, weights, "bfloat16")
    found = load_tensors(tmp_path)
    assert all(torch.equal(found[name], weights[name].to(torch.bfloat16)) for name in weights)
    assert count_parameters(tmp_path)[1] == "bfloat16"


def test_what_is_missing_or_damaged(tmp_path: Path) -> None:
    assert not has_weights(tmp_path)
    save_tensors(tmp_path, make_model().state_dict(), max_bytes=1500)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:50])
    with pytest.raises(UserError, match=r"model-00002-of-00003\.safetensors: not a safetensors file"):
        load_tensors(tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00003\.safetensors: missing, 1 of 3 shards; copy the whole"):
        load_tensors(tmp_path)
    for text in ("{", "[]", '{"weight_map": 3}'):
        (tmp_path / INDEX_FILE).write_text(text)
        with pytest.raises(UserError, match="not an index of shards"):
            list_weight_files(tmp_path)


def test_an_index_names_files_of_its_own_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "secret.safetensors")
    (tmp_path / "inner" / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(UserError, match="missing, 1 of 1 shards"):
        load_tensors(tmp_path / "inner")
