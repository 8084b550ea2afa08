"""AdamW and Adafactor that carry the exponential moving average of the weights as their own state.

Kept as optimizer state, the average is sharded with the fp32 master weights under every ZeRO stage, costs no gather a
step, and is saved and resharded with them. The decay of update t (from 1) is warmed up (`train.schedule.ema_decay_at`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from train.schedule import ema_decay_at

EMA = "ema"


class AdamWEma(torch.optim.AdamW):
    """torch's fused AdamW; after each update ``ema <- lerp(ema, weight, 1 - decay)`` in the state slot ``ema``.

    With ``skip`` set, `step` changes nothing.
    """

    def __init__(self, params: Iterable[Any], lr: float, ema_decay: float, **options: Any) -> None:
        super().__init__(params, lr=lr, fused=True, **options)
        self.ema_decay = ema_decay
        self.skip = False

    @staticmethod
    def slots(shape: torch.Size) -> tuple[str, ...]:
        """Names of the state of a parameter of this shape."""
        return ("exp_avg", "exp_avg_sq", EMA)

    def allocate(self, params: Iterable[Tensor]) -> None:
        """Makes the state of those of ``params`` that have none yet: zero moments, the average at the weight itself."""
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
        """One update of weights and averages from the gradients in place."""
        if self.skip:
            return
        params = [param for group in self.param_groups for param in group["params"] if param.grad is not None]
        self.allocate(params)
        super().step(closure)
        _average(self, params)


class AdafactorEma(torch.optim.Optimizer):
    """Adafactor (Shazeer & Stern 2018, algorithms 4 and 5) without momentum, given a learning rate; and the average.

    Updates are clipped at a root mean square of 1. ``lr`` is absolute, as Adam's is: scaled by the parameter's size, as
    in the paper, layers that start at zero would stay there for thousands of updates. A parameter of two or more axes
    is taken as the matrix (first axis, all others), since a kernel's own last two axes would factor next to nothing.
    With ``skip`` set, `step` changes nothing.
    """

    EPS1 = 1e-30  # the paper's, under the squared gradient

    def __init__(self, params: Iterable[Any], lr: float, ema_decay: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.ema_decay = ema_decay
        self.skip = False

    @staticmethod
    def slots(shape: torch.Size) -> tuple[str, ...]:
        """Names of the state of a parameter of this shape."""
        return ("row", "column", EMA) if len(shape) >= 2 else ("exp_avg_sq", EMA)

    def allocate(self, params: Iterable[Tensor]) -> None:
        """Makes the state of those of ``params`` that have none yet."""
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
        """One update of weights and averages from the gradients in place."""
        if self.skip:
            return
        params = [param for group in self.param_groups for param in group["params"] if param.grad is not None]
        self.allocate(params)
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, group["lr"], group["weight_decay"])
        _average(self, params)

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


def _average(optimizer: AdamWEma | AdafactorEma, params: list[Tensor]) -> None:
    if params:  # all were updated equally often
        update = int(optimizer.state[params[0]]["step"].item())
        averages = [optimizer.state[param][EMA] for param in params]
        torch._foreach_lerp_(averages, params, 1 - ema_decay_at(update, optimizer.ema_decay))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; vectors (biases, norms, gains) and scalars do not. Frozen parameters are left out."""
    params = [param for param in module.parameters() if param.requires_grad]
    return [
        {"params": [param for param in params if param.ndim >= 2], "weight_decay": weight_decay},
        {"params": [param for param in params if param.ndim < 2], "weight_decay": 0.0},
    ]
