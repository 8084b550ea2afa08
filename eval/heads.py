"""Small networks over CLIP image features, from a local weights file: is a picture beautiful, unsafe, watermarked?

A head is a stack of linear layers, as LAION's aesthetic predictors are: a plain matrix, or several with or without an
activation between them. Legend: N images, D feature dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from dataprep.schema import Config, UserError
from dataprep.storage import exists, local_copy

ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}


class HeadConfig(Config):
    """One head."""

    path: str = Field(description="weights of its linear layers: .safetensors, or a torch state dict (.pt, .pth)")
    activation: Literal["none", "relu", "gelu"] = Field(
        default="none", description="between the layers; LAION's aesthetic predictor has none"
    )
    output: Literal["none", "sigmoid"] = Field(
        default="none", description="sigmoid: the last layer gives a logit, the column a probability"
    )


class HeadsConfig(Config):
    """Which heads there are; each gives a column of its name."""

    aesthetic: HeadConfig | None = Field(default=None, description="how beautiful a picture is (LAION: 1 to 10)")
    nsfw: HeadConfig | None = Field(default=None, description="probability that a picture is unsafe for work")
    watermark: HeadConfig | None = Field(default=None, description="probability of a watermark")

    def given(self) -> dict[str, HeadConfig]:
        """The heads that are set, by name, in one order."""
        heads = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: head for name, head in heads.items() if head is not None}


class ScoreConfig(Config):
    """What is computed of each pair besides the CLIP similarity."""

    embeddings: bool = Field(
        default=False, description="keep each image's CLIP features, float16; select.near_duplicate_cosine needs them"
    )
    heads: HeadsConfig = Field(default=HeadsConfig(), description="networks over the image's CLIP features")


class Head:
    """A frozen head."""

    def __init__(self, layers: nn.Sequential, name: str, dim: int) -> None:
        self.layers, self.name, self.dim = layers.eval().requires_grad_(False), name, dim

    @classmethod
    def load(cls, name: str, config: HeadConfig) -> Head:
        """Reads ``config.path`` (any fsspec URL). UserError where it is no stack of linear layers that ends in one."""
        weights = [
            weight for _, weight in sorted(_matrices(name, config.path).items(), key=lambda item: _order(item[0]))
        ]
        for (above, _), (below, _) in pairwise(weights):
            if above.shape[0] != below.shape[1]:
                raise _wrong(
                    name, config.path, f"a layer gives {above.shape[0]} values, the next takes {below.shape[1]}"
                )
        if weights[-1][0].shape[0] != 1:
            raise _wrong(name, config.path, f"the last layer gives {weights[-1][0].shape[0]} values, not one")
        layers: list[nn.Module] = []
        for weight_OD, bias_O in weights:
            linear = nn.Linear(weight_OD.shape[1], weight_OD.shape[0], bias=bias_O is not None)
            linear.weight.data = weight_OD.float()
            if bias_O is not None:
                linear.bias.data = bias_O.float()
            layers += [linear, ACTIVATIONS[config.activation]()]
        layers[-1] = ACTIVATIONS[config.output]()
        return cls(nn.Sequential(*layers), name, weights[0][0].shape[1])

    @torch.inference_mode()
    def __call__(self, feature_ND: np.ndarray) -> np.ndarray:
        """float32 (N,) of float32 unit vectors (N, D). UserError where D is not that of the head."""
        if feature_ND.shape[1] != self.dim:
            raise UserError(
                f"score.heads.{self.name}: takes features of {self.dim} dimensions, this CLIP gives "
                f"{feature_ND.shape[1]}; give a head that was trained on clip.model"
            )
        return self.layers(torch.from_numpy(feature_ND)).squeeze(1).numpy()


def head_files(config: HeadsConfig) -> list[str]:
    """The weights files, each checked to be there; UserError where one is not."""
    for name, head in config.given().items():
        if not exists(head.path):
            raise UserError(f"score.heads.{name}.path={head.path}: no such file; give a local weights file")
    return [head.path for head in config.given().values()]


def _matrices(name: str, path: str) -> dict[str, tuple[Tensor, Tensor | None]]:
    """layer name -> (weight (O, D), bias (O,) or None)."""
    tensors = _tensors(name, path)
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    for key, weight in tensors.items():
        prefix, _, last = key.rpartition(".")
        if last == "weight" and weight.ndim == 2:
            found[prefix] = (weight, tensors.get(f"{prefix}.bias" if prefix else "bias"))
        elif not (last == "bias" and weight.ndim == 1):
            raise _wrong(name, path, f"{key} of shape {tuple(weight.shape)} belongs to no linear layer")
    if not found:
        raise _wrong(name, path, "no weight matrix in it")
    return found


def _tensors(name: str, path: str) -> Mapping[str, Tensor]:
    try:
        with local_copy(path) as local:
            if Path(local).suffix == ".safetensors":
                from safetensors.torch import load_file

                return load_file(local)
            loaded: Any = torch.load(local, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise whatever a broken file provokes; weights_only runs none of its code
        raise _wrong(name, path, " ".join(str(error).split())[:160] or type(error).__name__) from error
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise _wrong(name, path, "not a dict of tensors")
    return loaded


def _order(key: str) -> list[tuple[int, str]]:
    """Sorts layers.10 after layers.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"\.", key)]


def _wrong(name: str, path: str, reason: str) -> UserError:
    return UserError(f"score.heads.{name}.path={path}: {reason}; give a stack of linear layers over CLIP features")
