"""Compares the tensors of a source with those of a model, and loads those that fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from dataprep.io.errors import UserError
from train.init_config import InitConfig
from train.initial_weights.base import Shape
from train.initial_weights.registry import find_weight_source

if TYPE_CHECKING:
    from torch import nn

# Part of a name that wrappers put in front: added or taken away where that lets more names agree.
WRAPPERS = ("unet.", "module.", "model.")
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class ModelTensor:
    """A tensor of a model: its names, several where modules share it, and its shape."""

    names: tuple[str, ...]
    shape: Shape


@dataclass(frozen=True)
class WeightFit:
    """What of a source fits a model. ``pairs`` is name in the model -> name in the source."""

    pairs: Mapping[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]  # "name: 3x4 there, 3x5 here"

    def describe(self) -> str:
        """Returns what does not fit, in words; "" if all does."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.reshaped}
        parts = [f"{len(names)} {kind} ({_shorten(names)})" for kind, names in kinds.items() if names]
        return ", ".join(parts)


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def list_model_tensors(model: nn.Module) -> list[ModelTensor]:
    """Returns the tensors of a model's state dict; works on the meta device."""
    named: dict[int, list[str]] = {}
    shapes: dict[int, Shape] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        named.setdefault(id(tensor), []).append(name)
        shapes[id(tensor)] = tuple(tensor.shape)
    return [ModelTensor(tuple(names), shapes[key]) for key, names in named.items()]


def compare_tensors(model: Sequence[ModelTensor], found: Mapping[str, Shape]) -> WeightFit:
    """Matches a model's tensors with those of a source by name, then by shape."""
    names = {name for tensor in model for name in tensor.names}
    renamed = _unwrap_names(names, found)
    pairs: dict[str, str] = {}
    missing, reshaped = [], []
    for tensor in model:
        known = [name for name in tensor.names if name in renamed]
        if not known:
            missing.append(tensor.names[0])
        elif (shape := found[renamed[known[0]]]) != tensor.shape:
            reshaped.append(f"{known[0]}: {_format_shape(shape)} there, {_format_shape(tensor.shape)} here")
        else:
            pairs[known[0]] = renamed[known[0]]
    unexpected = [name for name, original in renamed.items() if name not in names]
    return WeightFit(pairs, tuple(missing), tuple(unexpected), tuple(reshaped))


def _unwrap_names(wanted: set[str], found: Mapping[str, Shape]) -> dict[str, str]:
    """Returns the name in the model -> name in the source, with a wrapper's prefix added or removed if that fits."""
    options = [{name: name for name in found}]
    for prefix in WRAPPERS:
        options.append({prefix + name: name for name in found})
        options.append({name.removeprefix(prefix): name for name in found})
    return max(options, key=lambda option: len(wanted.intersection(option)))  # the first of equals: as they are


def _format_shape(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a number"


def check_fit(fit: WeightFit, init: InitConfig, key: str) -> None:
    """Raises UserError for tensors that do not fit and that ``init`` does not allow; ``key`` is the config's key."""
    refused = WeightFit(
        fit.pairs,
        _refuse(fit.missing, init.missing),
        _refuse(fit.unexpected, init.unexpected),
        _refuse(fit.reshaped, init.reshaped),
    )
    if not fit.pairs:
        raise UserError(f"{key}={init.source}: none of its tensors fits the model ({fit.describe()}); name another one")
    if text := refused.describe():
        raise UserError(
            f"{key}={init.source}: tensors do not fit the model: {text}; set model and model_overrides as they were "
            f"there, or allow them by name in {key}.missing, .unexpected or .reshaped"
        )


def _refuse(names: Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if not any(fnmatchcase(name.split(":")[0], pattern) for pattern in allowed))


def load_initial_weights(model: nn.Module, init: InitConfig, key: str = "init") -> WeightFit:
    """Copies the source's tensors into ``model``; returns what was not loaded.

    Raises UserError as `check_fit`, and for a source that is missing or has tensors that are not finite.
    """
    import torch

    source = find_weight_source(init.source)
    tensors = source.load(init.source, init.weights)
    fit = compare_tensors(list_model_tensors(model), {name: tuple(value.shape) for name, value in tensors.items()})
    check_fit(fit, init, key)
    state = model.state_dict()
    with torch.no_grad():
        for name, original in fit.pairs.items():
            value = tensors[original]
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise UserError(f"{key}={init.source}: {original} is not finite; name another checkpoint or model")
            state[name].copy_(value)
    return fit
