"""Small networks over CLIP image features, read from a weights file: aesthetic score, NSFW, watermark (`HEADS`).

A head is a stack of linear layers, as LAION's aesthetic predictors are: one matrix, or several with or without an
activation in between. Shape legend: N images, D feature dimensions, O outputs of a layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from dataprep.io.errors import UserError
from dataprep.io.storage import exists
from eval.clip.config import HeadConfig
from train.models.weight_files import read_tensor_file

ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}


class Head:
    """A frozen head; ``name`` is that of its column, ``dim`` the D that it takes."""

    type = pa.float32()

    def __init__(self, layers: nn.Sequential, name: str, dim: int) -> None:
        self.layers, self.name, self.dim = layers.eval().requires_grad_(False), name, dim

    @classmethod
    def load(cls, name: str, config: HeadConfig) -> Head:
        """Reads ``config.path`` (any fsspec URL).

        Raises UserError for a file that does not hold a stack of linear layers with one output.
        """
        matrices = _find_matrices(name, config.path)
        weights = [weight for _, weight in sorted(matrices.items(), key=lambda item: _natural_key(item[0]))]
        for (above, _), (below, _) in pairwise(weights):
            if above.shape[0] != below.shape[1]:
                raise _bad_file(
                    name, config.path, f"a layer gives {above.shape[0]} values, the next takes {below.shape[1]}"
                )
        if weights[-1][0].shape[0] != 1:
            raise _bad_file(name, config.path, f"the last layer gives {weights[-1][0].shape[0]} values, not one")
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
        """Returns float32 (N,) for float32 unit vectors (N, D). Raises UserError for another D than the head's."""
        if feature_ND.shape[1] != self.dim:
            raise UserError(
                f"score.heads.{self.name}: takes features of {self.dim} dimensions, this CLIP gives "
                f"{feature_ND.shape[1]}; give a head that was trained on clip.model"
            )
        return self.layers(torch.from_numpy(feature_ND)).squeeze(1).numpy()


def find_head_files(heads: Mapping[str, HeadConfig]) -> list[str]:
    """Returns the paths of the weights; raises UserError for a missing file."""
    for name, head in heads.items():
        if not exists(head.path):
            raise UserError(f"score.heads.{name}.path={head.path}: no such file; give a local weights file")
    return [head.path for head in heads.values()]


def _find_matrices(name: str, path: str) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Returns {layer name: (weight (O, D), bias (O,) or None)}."""
    tensors = _read_tensors(name, path)
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    for key, weight in tensors.items():
        prefix, _, last = key.rpartition(".")
        if last == "weight" and weight.ndim == 2:
            found[prefix] = (weight, tensors.get(f"{prefix}.bias" if prefix else "bias"))
        elif not (last == "bias" and weight.ndim == 1):
            raise _bad_file(name, path, f"{key} of shape {tuple(weight.shape)} belongs to no linear layer")
    if not found:
        raise _bad_file(name, path, "it holds no weight matrix")
    return found


def _read_tensors(name: str, path: str) -> Mapping[str, Tensor]:
    try:
        return read_tensor_file(path)
    except ValueError as error:
        raise _bad_file(name, path, str(error)) from error


def _natural_key(key: str) -> list[tuple[int, str]]:
    """Sort key that puts layers.10 after layers.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"\.", key)]


def _bad_file(name: str, path: str, reason: str) -> UserError:
    return UserError(f"score.heads.{name}.path={path}: {reason}; give a stack of linear layers over CLIP features")
