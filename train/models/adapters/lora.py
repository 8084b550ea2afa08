"""LoRA (Hu et al. 2021): W x + scale B A x, W frozen, A (rank x in) and B (out x rank) trained, B zero at first.

A convolution has an A with its kernel and stride, and a B of 1x1, as in peft. The two are submodules of the layer,
which keeps its name, type and weight; a forward hook adds their output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dataprep.io.errors import UserError

if TYPE_CHECKING:
    from train.models.adapters.config import AdapterConfig

DOWN, UP = "lora_A", "lora_B"
# Modules that use the weights of their layers without calling them, so that a hook there has no effect.
UNCALLED = ("MultiheadAttention", "AttentionPool2d")
Layer = nn.Linear | nn.Conv2d


def add_lora(model: nn.Module, config: AdapterConfig) -> None:
    """Freezes ``model`` and adds a pair of matrices, from torch's global generator, to each of the config's targets.

    Raises UserError for a pattern that names no layer.
    """
    layers = find_layers(model)
    for pattern in config.targets:
        if not any(fnmatchcase(name, pattern) for name in layers):
            some = ", ".join(sorted(layers)[:3])
            raise UserError(
                f"adapter.targets={pattern}: no linear layer or convolution of the model has such a name; there are "
                f"{some} and others"
            )
    model.requires_grad_(False)
    for name, layer in layers.items():
        if any(fnmatchcase(name, pattern) for pattern in config.targets):
            down, up = _build_pair(layer, config.rank)
            layer.add_module(DOWN, down)
            layer.add_module(UP, up)
            layer.register_forward_hook(partial(_add_update, scale=config.scale))


def find_layers(model: nn.Module) -> dict[str, Layer]:
    """Returns the layers that can have a pair, by name: not grouped, not shared, and called by their parents."""
    uses = Counter(id(tensor) for tensor in model.state_dict(keep_vars=True).values())
    uncalled = [name + "." for name, module in model.named_modules() if type(module).__name__ in UNCALLED]
    found: dict[str, Layer] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or name.startswith(tuple(uncalled)):
            continue
        if uses[id(module.weight)] == 1 and getattr(module, "groups", 1) == 1:
            found[name] = module
    return found


def _build_pair(layer: Layer, rank: int) -> tuple[nn.Module, nn.Module]:
    down: Layer
    up: Layer
    made: dict[str, Any] = {"bias": False, "dtype": layer.weight.dtype, "device": layer.weight.device}
    if isinstance(layer, nn.Linear):
        down, up = nn.Linear(layer.in_features, rank, **made), nn.Linear(rank, layer.out_features, **made)
    else:
        # Of the layer's own class: one that resamples does so with A, too.
        same: dict[str, Any] = {
            name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        }
        down = type(layer)(layer.in_channels, rank, **same, **made)
        up = nn.Conv2d(rank, layer.out_channels, 1, **made)
    nn.init.kaiming_uniform_(down.weight, a=5**0.5)
    nn.init.zeros_(up.weight)
    return down, up


def _add_update(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, scale: float) -> Tensor:
    update: Tensor = layer.get_submodule(UP)(layer.get_submodule(DOWN)(inputs[0]))
    return output + (update if scale == 1 else scale * update)


def multiply_pair(down: Tensor, up: Tensor) -> Tensor:
    """Returns B A as a weight: (out, in) of a linear layer, (out, in, k, k) of a convolution; float32."""
    return torch.einsum("or,r...->o...", up.float().flatten(1), down.float())


def split_pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns layer -> (A, B) of tensors named ``<layer>.lora_A.weight`` and ``<layer>.lora_B.weight``."""
    ending = f".{DOWN}.weight"
    names = [name.removesuffix(ending) for name in tensors if name.endswith(ending)]
    return {name: (tensors[name + ending], tensors[f"{name}.{UP}.weight"]) for name in names}


def merge_pairs(
    state: Mapping[str, Tensor], pairs: Mapping[str, tuple[Tensor, Tensor]], scales: Mapping[str, float]
) -> dict[str, Tensor]:
    """Returns a state dict without pairs, with ``scale B A`` added to the weight of each layer; new tensors there.

    Pairs may be on another device than the weights.
    """
    merged = {name: value for name, value in state.items() if not is_adapter_tensor(name)}
    for name, (down, up) in pairs.items():
        weight = merged[f"{name}.weight"]
        update = multiply_pair(down.to(weight.device), up.to(weight.device))
        merged[f"{name}.weight"] = (weight.float() + scales[name] * update).to(weight.dtype)
    return merged


def is_adapter_tensor(name: str) -> bool:
    """Returns whether a tensor of a state dict belongs to an adapter."""
    parts = name.split(".")
    return len(parts) > 1 and parts[-2] in (DOWN, UP)


def check_shapes(weight: Sequence[int], down: Sequence[int], up: Sequence[int]) -> bool:
    """Returns whether a pair fits a layer's weight."""
    return up[0] == weight[0] and up[1] == down[0] and tuple(down[1:]) == tuple(weight[1:])
