"""AdamW and Adafactor that keep the exponential moving average (EMA) of the weights in their state.

As optimizer state, the EMA is sharded with the fp32 master weights under every ZeRO stage, needs no communication, and
is saved and resharded with them. Its decay is warmed up (`train.lr_schedule.ema_decay_at`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from train.lr_schedule import ema_decay_at

EMA = "ema"


class AdamWEma(torch.optim.AdamW):
    """torch's fused AdamW; after each update ``ema <- lerp(ema, weight, 1 - decay)`` in the state slot ``ema``.

    With ``skip`` set, `step` does nothing.
    """

    def __init__(self, params: Iterable[Any], lr: float, ema_decay: float, **options: Any) -> None:
        super().__init__(params, lr=lr, fused=True, **options)
        self.ema_decay = ema_decay
        self.skip = False

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

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates weights and EMA in place from the gradients."""
        if self.skip:
            return
        params = [param for group in self.param_groups for param in group["params"] if param.grad is not None]
        self.allocate(params)
        super().step(closure)
        _update_ema(self, params)


class AdafactorEma(torch.optim.Optimizer):
    """Adafactor (Shazeer & Stern 2018, algorithms 4 and 5) without momentum, with a given learning rate, and the EMA.

    Clips updates to a root mean square of 1. ``lr`` is absolute, as for Adam: scaled by the parameter's magnitude, as
    in the paper, zero-initialised layers would stay at zero for thousands of updates. A parameter of two or more axes
    counts as the matrix (first axis, all others): the last two axes of a kernel would factor next to nothing. With
    ``skip`` set, `step` does nothing.
    """

    EPS1 = 1e-30  # the paper's, under the squared gradient

    def __init__(self, params: Iterable[Any], lr: float, ema_decay: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.ema_decay = ema_decay
        self.skip = False

    @staticmethod
    def slots(shape: torch.Size) -> tuple[str, ...]:
        """Returns the names of the state tensors of a parameter of this shape."""
        return ("row", "column", EMA) if len(shape) >= 2 else ("exp_avg_sq", EMA)

    def allocate(self, params: Iterable[Tensor]) -> None:
        """Creates the state of ``params`` without one."""
        for param in params:
            if self.state[param]:
                continue
            state: dict[str, Tensor] = {"step": torch.zeros((), dtype=torch.float32, device=param.device)}
            if param.ndim >= 2:
                state |= {"row": param.new_zeros(param.shape[0]), "column": param.new_zeros(param[0].numel())}
            else:
                state["exp_avg_sq"] = torch.zeros_like(param)
            self.state[param] = state | {EMA: param.detach().clone()}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates weights and EMA in place from the gradients."""
        if self.skip:
            return
        params = [param for group in self.param_groups for param in group["params"] if param.grad is not None]
        self.allocate(params)
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, group["lr"], group["weight_decay"])
        _update_ema(self, params)

    def _update(self, param: Tensor, rate: float, decay: float) -> None:
        state, grad = self.state[param], param.grad
        assert grad is not None
        state["step"] += 1
        beta = 1 - float(state["step"]) ** -0.8
        squared = grad.square() + self.EPS1
        if param.ndim >= 2:
            matrix = squared.flatten(1)
            state["row"].lerp_(matrix.mean(1), 1 - beta)
            state["column"].lerp_(matrix.mean(0), 1 - beta)
            rows = (state["row"] / state["row"].mean()).rsqrt()
            update = (grad.flatten(1) * rows[:, None] * state["column"].rsqrt()[None]).view_as(param)
        else:
            state["exp_avg_sq"].lerp_(squared, 1 - beta)
            update = grad * state["exp_avg_sq"].rsqrt()
        update.div_(_rms(update).clamp(min=1.0)).mul_(rate)
        param.mul_(1 - rate * decay)
        param.sub_(update)


def _rms(value: Tensor) -> Tensor:
    return value.square().mean().sqrt()


def _update_ema(optimizer: AdamWEma | AdafactorEma, params: list[Tensor]) -> None:
    if params:  # all have had the same number of updates
        update = int(optimizer.state[params[0]]["step"].item())
        emas = [optimizer.state[param][EMA] for param in params]
        torch._foreach_lerp_(emas, params, 1 - ema_decay_at(update, optimizer.ema_decay))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups trained parameters: matrices and kernels decay; vectors (biases, norms, gains) and scalars do not."""
    params = [param for param in module.parameters() if param.requires_grad]
    return [
        {"params": [param for param in params if param.ndim >= 2], "weight_decay": weight_decay},
        {"params": [param for param in params if param.ndim < 2], "weight_decay": 0.0},
    ]
