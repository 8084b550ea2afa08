"""AdamW and Adafactor that keep the exponential moving average (EMA) of the weights in their state.

As optimizer state, the EMA is sharded with the fp32 master weights under every ZeRO stage, needs no communication, and
is saved and resharded with them. Its decay is warmed up (`train.lr_schedule.ema_decay_at`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from train.lr_schedule import ema_decay_at

EMA = "ema"
# Adam's update without the wrapper that imports torch.compile; gradients are off here, which is all else that it does.
ADAM_STEP: Callable[..., Any] = torch.optim.Adam.step.__wrapped__  # type: ignore[attr-defined]
EXEMPT = "_disable_dynamo.<locals>.inner"  # what torch's own functions are wrapped in that torch.compile must not touch
CHUNK = 2**26  # elements of gradients whose temporaries Adafactor holds at once: 256 MiB for each of two


def _leave_compiler_unloaded() -> None:
    """Makes torch's optimizers not import torch.compile.

    Each of their methods imports it at its first call, only to be exempt from it: a CPU-second per process. No
    optimizer is compiled here.
    """
    for method in vars(torch.optim.Optimizer).values():
        if getattr(getattr(method, "__code__", None), "co_qualname", "") == EXEMPT:
            method.__wrapped__.__dict__["__dynamo_disable"] = method.__wrapped__


_leave_compiler_unloaded()


class CountedUpdates:
    """Counts the updates of each parameter on the host: read from the device, a count would wait for its queue.

    Per parameter, since ZeRO 3 updates its groups of parameters one after another, each by a step of the optimizer.
    """

    def __init__(self, *args: Any, ema_decay: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ema_decay = ema_decay
        self.skip = False
        self.updates: dict[Tensor, int] = {}

    def set_updates(self, params: Iterable[Tensor], updates: int) -> None:
        """Sets the number of updates that parameters have had."""
        self.updates |= dict.fromkeys(params, updates)

    def _count(self, params: Iterable[Tensor]) -> dict[int, list[Tensor]]:
        """Counts an update of ``params``; returns them by their number of updates, mostly one for all."""
        by_count: dict[int, list[Tensor]] = {}
        for param in params:
            self.updates[param] = self.updates.get(param, 0) + 1
            by_count.setdefault(self.updates[param], []).append(param)
        return by_count

    def _update_ema(self, by_count: Mapping[int, list[Tensor]], state: Mapping[Any, Any]) -> None:
        for update, params in by_count.items():
            emas = [state[param][EMA] for param in params]
            torch._foreach_lerp_(emas, params, 1 - ema_decay_at(update, self.ema_decay))


class AdamWEma(CountedUpdates, torch.optim.AdamW):
    """torch's fused AdamW; after each update ``ema <- lerp(ema, weight, 1 - decay)`` in the state slot ``ema``.

    With ``skip`` set, `step` does nothing.
    """

    def __init__(self, params: Iterable[Any], lr: float, ema_decay: float, **options: Any) -> None:
        super().__init__(params, lr=lr, fused=True, ema_decay=ema_decay, **options)

    @staticmethod
    def slots(shape: torch.Size) -> tuple[str, ...]:
        """Returns the names of the state tensors of a parameter of this shape."""
        return ("exp_avg", "exp_avg_sq", EMA)

    def allocate(self, params: Iterable[Tensor]) -> None:
        """Creates the state of ``params`` without one: zero moments, the EMA equal to the weight."""
        for param in params:
            if not self.state[param]:
                self.state[param] = {
                    "step": torch.zeros((), dtype=torch.float32, device=param.device),
                    "exp_avg": torch.zeros_like(param),
                    "exp_avg_sq": torch.zeros_like(param),
                    EMA: param.detach().clone(),
                }

    def set_updates(self, params: Iterable[Tensor], updates: int) -> None:
        """Sets the number of updates that parameters have had; torch's kernel reads it on their device."""
        params = list(params)
        super().set_updates(params, updates)
        for param in params:
            self.state[param]["step"].fill_(float(updates))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates weights and EMA in place from the gradients."""
        if self.skip:
            return
        params = [param for group in self.param_groups for param in group["params"] if param.grad is not None]
        self.allocate(params)
        ADAM_STEP(self, closure)
        self._update_ema(self._count(params), self.state)


class AdafactorEma(CountedUpdates, torch.optim.Optimizer):
    """Adafactor (Shazeer & Stern 2018, algorithms 4 and 5) without momentum, with a given learning rate, and the EMA.

    Clips updates to a root mean square of 1. ``lr`` is absolute, as for Adam: scaled by the parameter's magnitude, as
    in the paper, zero-initialised layers would stay at zero for thousands of updates. A parameter of two or more axes
    counts as the matrix (first axis, all others): the last two axes of a kernel would factor next to nothing. With
    ``skip`` set, `step` does nothing. Operates on many tensors per call, and never waits for the device.
    """

    EPS1 = 1e-30  # the paper's, under the squared gradient

    def __init__(self, params: Iterable[Any], lr: float, ema_decay: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay}, ema_decay=ema_decay)

    @staticmethod
    def slots(shape: torch.Size) -> tuple[str, ...]:
        """Returns the names of the state tensors of a parameter of this shape."""
        return ("row", "column", EMA) if len(shape) >= 2 else ("exp_avg_sq", EMA)

    def allocate(self, params: Iterable[Tensor]) -> None:
        """Creates the state of ``params`` without one."""
        for param in params:
            if self.state[param]:
                continue
            if param.ndim >= 2:
                state = {"row": param.new_zeros(param.shape[0]), "column": param.new_zeros(param[0].numel())}
            else:
                state = {"exp_avg_sq": torch.zeros_like(param)}
            self.state[param] = state | {EMA: param.detach().clone()}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates weights and EMA in place from the gradients."""
        if self.skip:
            return
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            self.allocate(params)
            by_count = self._count(params)
            for update, counted in by_count.items():
                for chunk in _split(counted, CHUNK):
                    self._update(chunk, update**-0.8, group["lr"], group["weight_decay"])
            self._update_ema(by_count, self.state)

    def _update(self, params: list[Tensor], weight: float, rate: float, decay: float) -> None:
        """Updates parameters; ``weight`` is that of the new squared gradient in its averages."""
        # Contiguous, as they nearly always are: below, matrices must be views of them.
        grads = [param.grad.contiguous() for param in params if param.grad is not None]
        squared = list(torch._foreach_mul(grads, grads))
        torch._foreach_add_(squared, self.EPS1)
        at = [index for index, param in enumerate(params) if param.ndim >= 2]
        matrices = [squared[index].flatten(1) for index in at]
        rows, columns = ([self.state[params[index]][name] for index in at] for name in ("row", "column"))
        vectors = [index for index, param in enumerate(params) if param.ndim < 2]
        moments = [self.state[params[index]]["exp_avg_sq"] for index in vectors]
        updates = squared  # whose memory is used again
        if at:
            torch._foreach_lerp_(rows, [matrix.mean(1) for matrix in matrices], weight)
            torch._foreach_lerp_(columns, [matrix.mean(0) for matrix in matrices], weight)
            shares = torch._foreach_div(rows, [row.mean() for row in rows])
            for index, share, scale in zip(
                at, torch._foreach_rsqrt(shares), torch._foreach_rsqrt(columns), strict=True
            ):
                torch.mul(grads[index].flatten(1), share[:, None], out=updates[index].flatten(1)).mul_(scale[None])
        if vectors:
            torch._foreach_lerp_(moments, [squared[index] for index in vectors], weight)
            for index, scale in zip(vectors, torch._foreach_rsqrt(moments), strict=True):
                torch.mul(grads[index], scale, out=updates[index])
        sizes = torch.stack([value.mean() for value in torch._foreach_mul(updates, updates)]).sqrt_()
        torch._foreach_div_(updates, list(sizes.clamp_(min=1.0).unbind()))
        torch._foreach_mul_(updates, rate)
        if decay:
            torch._foreach_mul_(params, 1 - rate * decay)
        torch._foreach_sub_(params, updates)


def _split(params: list[Tensor], elements: int) -> Iterator[list[Tensor]]:
    """Splits a list into pieces of at most that many elements, or of one tensor."""
    piece: list[Tensor] = []
    for param in params:
        if piece and sum(one.numel() for one in piece) + param.numel() > elements:
            yield piece
            piece = []
        piece.append(param)
    if piece:
        yield piece


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups trained parameters: matrices and kernels decay; vectors (biases, norms, gains) and scalars do not."""
    params = [param for param in module.parameters() if param.requires_grad]
    return [
        {"params": [param for param in params if param.ndim >= 2], "weight_decay": weight_decay},
        {"params": [param for param in params if param.ndim < 2], "weight_decay": 0.0},
    ]
