"""The kinds of adapters. Light: a kind's own module, which imports torch, is loaded when it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from train.models.adapters.config import AdapterConfig

# Freezes a model, and adds trained parameters to it whose effect is zero at first.
AddAdapter = Callable[["nn.Module", "AdapterConfig"], None]


def load_lora() -> AddAdapter:
    """Imports `add_lora`."""
    from train.models.adapters.lora import add_lora

    return add_lora


ADAPTERS: dict[str, Callable[[], AddAdapter]] = {
    "lora": load_lora,
}
