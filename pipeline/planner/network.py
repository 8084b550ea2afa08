"""What one training step of a U-Net costs: parameters, operations, and bytes of activations. Nothing is computed.

Operations are counted on the meta device, where attention is the plain matrix products that it stands for. Activations
are followed on fake tensors, where attention is the fused kernel that training uses: of every operation's output it is
noted when it is made and when it is let go, in a forward and a backward pass, gradients of parameters left out.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from train.models.unet import UNet, UNetConfig

PROBE = 4  # samples of the batch whose activations are followed; more of them take proportionally more
CONTIGUOUS = 50_000_000  # parameters above which train.config.ds_config asks for one buffer of gradients
PERSISTENT = 100_000  # elements up to which ZeRO 3 leaves a parameter whole (stage3_param_persistence_threshold)


@dataclass(frozen=True)
class Activations:
    """The most bytes that are live at once in a step beside weights, gradients and optimizer.

    ``bytes_a_sample`` grows with the micro batch. ``fixed`` does not: autocast's bf16 copies of the weights; nor does
    ``floor``, the gradient of the largest parameter. ``gradients_a_sample`` is for networks whose new gradients stay
    until all are there (ZeRO 2 and 3 of small ones): activations that are live when, with these, most is.
    ``persistent``: elements of parameters that ZeRO 3 leaves whole.
    """

    bytes_a_sample: float
    floor: int
    fixed: int = 0
    gradients: int = 0
    gradients_a_sample: float = 0.0
    persistent: int = 0

    def of(self, micro_batch: int) -> float:
        """Bytes at a micro batch, gradients let go one by one."""
        return max(self.fixed + self.bytes_a_sample * micro_batch, self.floor)

    def with_gradients(self, micro_batch: int) -> float:
        """The same where new gradients stay until all are there."""
        return max(self.of(micro_batch), self.gradients + self.gradients_a_sample * micro_batch)


def forward_flops(config: UNetConfig, size: int, tokens: int) -> int:
    """Floating-point operations of the forward pass of one sample, two a multiplication; attention counted.

    ``size``: pixels a side of what it is trained on; ``tokens``: caption tokens, padding included.
    """
    with torch.device("meta"):
        model, inputs = UNet(config), step_inputs(config, 1, size, tokens, torch.float32)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**inputs)
    return int(counter.get_total_flops())


@cache
def activations(config: str, size: int, tokens: int, precision: str, recompute: bool, autocast: bool) -> Activations:
    """Followed through one step of `PROBE` samples. ``config`` is the JSON of a `UNetConfig`, which can be remembered.

    ``precision`` fp32 or bf16; ``autocast``: bf16 with fp32 weights, as training does without ZeRO.
    """
    layout = UNetConfig.model_validate_json(config)
    dtype = torch.bfloat16 if precision == "bf16" and not autocast else torch.float32
    with FakeTensorMode():
        with _default_dtype(dtype):
            model = UNet(layout)
        if recompute:
            model.enable_recompute()
        inputs = step_inputs(layout, PROBE, size, tokens, dtype)
        peak = peak_bytes(model, inputs, autocast)
        sizes = [param.numel() * param.element_size() for param in model.parameters()]
        numbers = [param.numel() for param in model.parameters()]
        loose = sum(numbers) <= CONTIGUOUS
        kept = max(peak_bytes(model, inputs, autocast, keep_gradients=True) - sum(sizes), 0) if loose else 0
    fixed = min(peak, sum(sizes) // 2) if autocast else 0
    persistent = sum(number for number in numbers if number <= PERSISTENT)
    gradients = sum(sizes) if loose else 0
    return Activations((peak - fixed) / PROBE, max(sizes), fixed, gradients, kept / PROBE, persistent)


def peak_bytes(
    model: nn.Module, inputs: dict[str, Tensor], autocast: bool = False, keep_gradients: bool = False
) -> int:
    """Bytes live at once at most in a forward and a backward pass, beside parameters.

    Works on fake tensors as on real ones. A parameter's gradient is let go as soon as it is there, or with
    ``keep_gradients`` when all are.
    """
    trained = [param for param in model.parameters() if param.requires_grad]
    handles = [] if keep_gradients else [param.register_post_accumulate_grad_hook(_let_go) for param in trained]
    if autocast:
        norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm | nn.LayerNorm)]
        handles += [module.register_forward_pre_hook(_to_fp32) for module in norms]
    live = Live([*model.parameters(), *model.buffers()])
    with live:
        live.note(inputs.values())
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            output = model(**inputs)
        output.float().square().mean().backward()
    for handle in handles:
        handle.remove()
    model.zero_grad(set_to_none=True)
    return live.peak


def _let_go(param: Tensor) -> None:
    param.grad = None


class Live(TorchDispatchMode):
    """Follows the bytes of the storages that operations make; ``own`` are tensors that are not counted."""

    def __init__(self, own: list[Tensor]) -> None:
        super().__init__()
        self.kept = [tensor.untyped_storage() for tensor in own]  # alive, so that no other gets their address
        self.sizes = {storage._cdata: 0 for storage in self.kept}
        self.live = self.peak = 0

    def note(self, tensors: Any) -> None:
        """Counts the storages under ``tensors`` that are new."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, address: int) -> None:
        self.live -= self.sizes.pop(address)

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.note(tree_iter(result))
        return result


def _to_fp32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What autocast does to the inputs of norms on a GPU, and not on a CPU."""
    return (args[0].float(), *args[1:])


def step_inputs(config: UNetConfig, batch: int, size: int, tokens: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the U-Net takes, with nothing in it."""
    image = torch.zeros(batch, config.image_channels, size, size, dtype=dtype)
    given = {
        "x_BCHW": image,
        "log_snr_B": torch.zeros(batch),
        "text_BLD": torch.zeros(batch, tokens, config.text_dim, dtype=dtype),
        "text_mask_BL": torch.ones(batch, tokens, dtype=torch.bool),
        "text_keep_B": torch.ones(batch, dtype=torch.bool),
    }
    if config.lowres:
        given |= {"lowres_BCHW": torch.zeros_like(image), "lowres_log_snr_B": torch.zeros(batch)}
    return given


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
