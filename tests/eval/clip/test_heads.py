"""Heads over CLIP features: published weights load, other files are refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dataprep.io.errors import UserError
from eval.clip.config import HeadConfig
from eval.clip.heads import Head, find_head_files

FEATURES = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)


def config(path: Path, **options: Any) -> HeadConfig:
    return HeadConfig(path=str(path), **options)


def test_linear_head_as_published_by_laion(tmp_path: Path) -> None:
    linear = nn.Linear(8, 1)
    torch.save(linear.state_dict(), tmp_path / "vit_l_14_linear.pth")
    values = Head.load("aesthetic", config(tmp_path / "vit_l_14_linear.pth"))(FEATURES)
    assert values.shape == (6,) and values.dtype == np.float32
    np.testing.assert_allclose(values, linear(torch.from_numpy(FEATURES)).detach()[:, 0], atol=1e-6)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_layers_are_in_numeric_order(tmp_path: Path, kind: str, activation: str) -> None:
    # Twelve layers: sorted as text, layers.10 would come before layers.2. Dropout between them has no weights.
    sizes = [8, *range(9, 19), 3, 1]
    layers = nn.ModuleDict({str(2 * index): nn.Linear(*pair) for index, pair in enumerate(pairwise(sizes))})
    state = {f"layers.{key}": value for key, value in layers.state_dict().items()}
    path = tmp_path / f"head.{kind}"
    save_file(state, path) if kind == "safetensors" else torch.save({"state_dict": state}, path)
    values = Head.load("nsfw", config(path, activation=activation, output="sigmoid"))(FEATURES)
    hidden = torch.from_numpy(FEATURES)
    for index, layer in enumerate(layers.values()):
        hidden = layer(hidden)
        if activation == "relu" and index < len(layers) - 1:
            hidden = hidden.relu()
    np.testing.assert_allclose(values, hidden.sigmoid().detach()[:, 0], atol=1e-6)


def bad_files(folder: Path) -> list[tuple[Path, str]]:
    def saved(name: str, value: Any) -> Path:
        torch.save(value, folder / name)
        return folder / name

    (folder / "torn.safetensors").write_bytes(b"not one")
    (folder / "torn.pt").write_bytes(b"not one")
    two = {"0.weight": torch.zeros(4, 8), "1.weight": torch.zeros(1, 5)}
    return [
        (folder / "torn.safetensors", "give a stack of linear layers"),
        (folder / "torn.pt", "give a stack of linear layers"),
        (saved("code.pt", {"run": print}), "give a stack of linear layers"),
        (saved("list.pt", [torch.zeros(1)]), "not a dict of tensors"),
        (saved("empty.pt", {}), "it holds no weight matrix"),
        (saved("conv.pt", {"conv.weight": torch.zeros(1, 2, 3)}), "conv.weight of shape"),
        (saved("sizes.pt", two), "a layer gives 4 values, the next takes 5"),
        (saved("wide.pt", {"weight": torch.zeros(3, 8)}), "the last layer gives 3 values, not one"),
    ]


def test_other_files_are_refused(tmp_path: Path) -> None:
    for path, message in bad_files(tmp_path):
        with pytest.raises(UserError, match=message) as caught:
            Head.load("watermark", config(path))
        assert f"score.heads.watermark.path={path}" in str(caught.value) and "\n" not in str(caught.value)


def test_features_of_another_clip_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1, 768)}, tmp_path / "h.safetensors")
    head = Head.load("aesthetic", config(tmp_path / "h.safetensors"))
    with pytest.raises(UserError, match="768 dimensions, this CLIP gives 8"):
        head(FEATURES)


def test_missing_files_are_noticed_before_any_work(tmp_path: Path) -> None:
    assert find_head_files({}) == []
    path = tmp_path / "h.safetensors"
    with pytest.raises(UserError, match=r"score.heads.nsfw.path=.*no such file"):
        find_head_files({"nsfw": config(path)})
    path.touch()
    assert find_head_files({"nsfw": config(path)}) == [str(path)]
