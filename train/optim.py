"""AdamW that carries the exponential moving average of the weights as its own state, and learning rate schedules.

Kept as optimizer state, the average is sharded with the fp32 master weights under every ZeRO stage, costs no gather a
step, and is saved and resharded with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

ScheduleKind = Literal["constant", "cosine"]
STATE_SLOTS = ("exp_avg", "exp_avg_sq", "ema")


class AdamWEma(torch.optim.AdamW):
    """torch's fused AdamW; after each update ``ema <- lerp(ema, weight, 1 - decay)`` in the state slot ``ema``.

    The decay of update t (from 1) is min(ema_decay, (1 + t) / (10 + t)), so that early weights are forgotten quickly.
    With ``skip`` set, `step` changes nothing.
    """

    def __init__(self, params: Iterable[Any], lr: float, ema_decay: float, **options: Any) -> None:
        super().__init__(params, lr=lr, fused=True, **options)
        self.ema_decay = ema_decay
        self.skip = False

    def allocate(self, params: Iterable[Tensor]) -> None:
        """Makes the state of those of ``params`` that have none yet: zero moments, the average at the weight itself."""
        for param in params:
            if not self.state[param]:
                self.state[param] = {
                    "step": torch.zeros((), dtype=torch.float32, device=param.device),
                    "exp_avg": torch.zeros_like(param),
                    "exp_avg_sq": torch.zeros_like(param),
                    "ema": param.detach().clone(),
                }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of weights and averages from the gradients in place."""
        if self.skip:
            return
        params = [param for group in self.param_groups for param in group["params"] if param.grad is not None]
        self.allocate(params)
        super().step(closure)
        if params:  # all were updated equally often
            update = int(self.state[params[0]]["step"].item())
            averages = [self.state[param]["ema"] for param in params]
            torch._foreach_lerp_(averages, params, 1 - ema_decay_at(update, self.ema_decay))


def ema_decay_at(update: int, decay: float) -> float:
    """The decay of update number ``update``, counted from 1: warmed up as (1 + t) / (10 + t), at most ``decay``."""
    return min(decay, (1 + update) / (10 + update))


def learning_rate(
    step: int, peak: float, warmup: int, steps: int, kind: ScheduleKind, final_share: float = 0.0
) -> float:
    """The rate of step ``step`` (from 0): linear warm-up to ``peak``, then constant or a cosine to a share of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if kind == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress)))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; vectors (biases, norms, gains) and scalars do not. Frozen parameters are left out."""
    params = [param for param in module.parameters() if param.requires_grad]
    return [
        {"params": [param for param in params if param.ndim >= 2], "weight_decay": weight_decay},
        {"params": [param for param in params if param.ndim < 2], "weight_decay": 0.0},
    ]
