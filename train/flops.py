"""Floating-point operations of a model's forward pass, counted on shapes alone: no memory, no device time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

log = logging.getLogger(__name__)


class CallRecorder:
    """Calls a model, and keeps the shapes of its arguments."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.calls: list[tuple[Any, Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(tree_map(_without_data, (args, kwargs)))
        return self.model(*args, **kwargs)


def count_flops(build: Callable[[], nn.Module], calls: list[tuple[Any, Any]]) -> int | None:
    """Returns the operations of ``calls`` (`CallRecorder`) on the model that ``build`` makes, built without data.

    None, with a warning, for a model whose operators depend on the data. Leaves the random generator as it was.
    """
    try:
        # Fake tensors and not meta tensors: transformers looks into the data of masks that are not fake.
        with torch.random.fork_rng(devices=[]), FakeTensorMode():
            model = build()
            # Attention as two products, which are counted; its kernel for CPUs is not.
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                for args, kwargs in tree_map(_allocate, calls):
                    model(*args, **kwargs)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        log.warning("no MFU is logged: the operations of this model cannot be counted (%s)", str(error).split("\n")[0])
        return None
    return int(counter.get_total_flops())


def _without_data(value: Any) -> Any:
    return value.detach().to("meta") if isinstance(value, Tensor) else value


def _allocate(value: Any) -> Any:
    """Returns a fake tensor of a CPU for one without data."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
