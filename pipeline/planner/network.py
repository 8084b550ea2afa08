"""Cost of a training step of a denoiser or an autoencoder: FLOPs and bytes of activations, without computing anything.

FLOPs are counted on the meta device, where attention is plain matrix products. Activations are traced on fake tensors,
where attention is the fused kernel of training: the allocation and release of every output is followed through a
forward and a backward pass, without the gradients of parameters.
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

from train.deepspeed_config import CONTIGUOUS_ABOVE, PERSISTENT_UP_TO
from train.engine import enable_recompute
from train.models.adapters.config import AdapterConfig
from train.models.adapters.registry import ADAPTERS
from train.models.backbones import backbone_name, build_denoiser, find_backbone
from train.models.base import Conditions, DenoiserConfig
from train.models.discriminator import PatchDiscriminator
from train.models.vq.autoencoder import VqAutoencoder
from train.models.vq.config import VqConfig
from train.tasks.adversarial_config import AdversarialConfig

NetworkConfig = DenoiserConfig | VqConfig
StepInputs = tuple[Any, ...]  # noisy image, log-SNR, conditions; of an autoencoder the image
PROBE = 4  # samples whose activations are traced; more take proportionally more


@dataclass(frozen=True)
class Activations:
    """Peak bytes of a step without weights, gradients and optimizer.

    Attributes:
        bytes_per_sample: grows with the micro batch.
        floor: the gradient of the largest parameter.
        fixed: bf16 copies of the weights under autocast.
        gradients: of all parameters, if they are kept until all are computed (small networks, ZeRO 2 and 3).
        gradients_per_sample: activations live at the peak of activations plus such gradients.
        persistent: elements of parameters that ZeRO 3 does not shard.
        frozen: elements of parameters that are not trained.
    """

    bytes_per_sample: float
    floor: int
    fixed: int = 0
    gradients: int = 0
    gradients_per_sample: float = 0.0
    persistent: int = 0
    frozen: int = 0

    def of(self, micro_batch: int) -> float:
        """Returns the bytes of a micro batch if each gradient is released at once."""
        return max(self.fixed + self.bytes_per_sample * micro_batch, self.floor)

    def with_gradients(self, micro_batch: int) -> float:
        """Returns the bytes of a micro batch if gradients are kept until all are computed."""
        return max(self.of(micro_batch), self.gradients + self.gradients_per_sample * micro_batch)


def build_network(config: NetworkConfig) -> nn.Module:
    """Returns a fresh network."""
    return VqAutoencoder(config) if isinstance(config, VqConfig) else build_denoiser(config)


def count_forward_flops(config: NetworkConfig, size: int, tokens: int) -> int:
    """Returns the FLOPs of the forward pass of one sample, two per multiplication, attention included.

    ``size``: pixels per side; ``tokens``: caption tokens including padding.
    """
    # The autoencoder switches autocast off for a part, which the meta device does not know.
    with FakeTensorMode() if isinstance(config, VqConfig) else torch.device("meta"):
        model, inputs = build_network(config), make_step_inputs(config, 1, size, tokens, torch.float32)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*inputs)
    return int(counter.get_total_flops())


def count_discriminator_flops(config: AdversarialConfig, channels: int, size: int) -> int:
    """Returns the FLOPs of a discriminator's forward pass of one image; its part of the caption is next to nothing."""
    with torch.device("meta"):
        model = PatchDiscriminator(channels, config.width, config.layers, None, config.detail)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, channels, size, size), None)
    return int(counter.get_total_flops())


@cache
def trace_activations(
    config: NetworkConfig,
    size: int,
    tokens: int,
    precision: str,
    recompute: bool,
    autocast: bool,
    adapter: AdapterConfig | None = None,
) -> Activations:
    """Traces the activations of one step of `PROBE` samples.

    ``precision``: fp32 or bf16; ``autocast``: bf16 with fp32 weights, as in training without ZeRO; ``adapter``: what is
    trained in place of all weights.
    """
    dtype = torch.bfloat16 if precision == "bf16" and not autocast else torch.float32
    with FakeTensorMode():
        with _default_dtype(dtype):
            model = build_network(config)
            if adapter is not None:
                ADAPTERS[adapter.kind]()(model, adapter)
        if recompute:
            enable_recompute(model)
        inputs = make_step_inputs(config, PROBE, size, tokens, dtype)
        peak = measure_peak_bytes(model, inputs, autocast)
        trained = [param for param in model.parameters() if param.requires_grad]
        sizes = [param.numel() * param.element_size() for param in trained]
        numbers = [param.numel() for param in model.parameters()]
        width = trained[0].element_size()
        loose = sum(param.numel() for param in trained) <= CONTIGUOUS_ABOVE
        kept = max(measure_peak_bytes(model, inputs, autocast, keep_gradients=True) - sum(sizes), 0) if loose else 0
    fixed = min(peak, width * sum(numbers) // 2) if autocast else 0
    persistent = sum(number for number in numbers if number <= PERSISTENT_UP_TO)
    gradients = sum(sizes) if loose else 0
    frozen = sum(numbers) - sum(param.numel() for param in trained)
    return Activations((peak - fixed) / PROBE, max(sizes), fixed, gradients, kept / PROBE, persistent, frozen)


def measure_peak_bytes(
    model: nn.Module, inputs: StepInputs, autocast: bool = False, keep_gradients: bool = False
) -> int:
    """Returns the peak bytes of a forward and a backward pass without parameters, on fake or real tensors.

    A parameter's gradient is released as soon as it is computed, or with ``keep_gradients`` once all are.
    """
    trained = [param for param in model.parameters() if param.requires_grad]
    handles = (
        [] if keep_gradients else [param.register_post_accumulate_grad_hook(_release_gradient) for param in trained]
    )
    if autocast:
        norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm)]
        handles += [module.register_forward_pre_hook(_to_fp32) for module in norms]
    live = LiveBytes([*model.parameters(), *model.buffers()])
    with live:
        live.count_storages(tree_iter(inputs))
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            output = model(*inputs)
        made = [value for value in tree_iter(output) if isinstance(value, Tensor) and value.requires_grad]
        losses = [value.float().square().mean() for value in made]
        (losses[0] if len(losses) == 1 else torch.stack(losses).sum()).backward()
    for handle in handles:
        handle.remove()
    model.zero_grad(set_to_none=True)
    return live.peak


def _release_gradient(param: Tensor) -> None:
    param.grad = None


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live storages; ``own`` are tensors that are not counted."""

    def __init__(self, own: list[Tensor]) -> None:
        super().__init__()
        self.kept = [tensor.untyped_storage() for tensor in own]  # kept alive so that their addresses are not reused
        self.sizes = {storage._cdata: 0 for storage in self.kept}
        self.live = self.peak = 0

    def count_storages(self, tensors: Any) -> None:
        """Counts new storages among ``tensors``."""
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
        self.count_storages(tree_iter(result))
        return result


def _to_fp32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Casts the input of a norm to fp32, as autocast does on a GPU but not on a CPU."""
    return (args[0].float(), *args[1:])


def make_step_inputs(config: NetworkConfig, batch: int, size: int, tokens: int, dtype: torch.dtype) -> StepInputs:
    """What the network takes, with nothing in it."""
    image = torch.zeros(batch, config.image_channels, size, size, dtype=dtype)
    if isinstance(config, VqConfig):
        return (image,)
    conditions = Conditions(
        text_BLD=torch.zeros(batch, tokens, config.text_dim, dtype=dtype),
        text_mask_BL=torch.ones(batch, tokens, dtype=torch.bool),
        # A network that reads padding replaces dropped captions by another text, which costs next to nothing.
        text_keep_B=None if config.caption_tokens() else torch.ones(batch, dtype=torch.bool),
    )
    if config.lowres:
        conditions = conditions._replace(lowres_BCHW=torch.zeros_like(image), lowres_log_snr_B=torch.zeros(batch))
    make_input = find_backbone(backbone_name(config)).make_input
    vectors = {name: torch.zeros(batch, width, dtype=dtype) for name, width in config.vector_widths().items()}
    conditions = conditions._replace(**vectors)
    return image if make_input is None else make_input(config, batch, size), torch.zeros(batch), conditions


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
