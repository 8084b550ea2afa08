"""Muon with the exponential moving average of the weights: orthogonal updates of matrices, Adam's of all else.

The momentum of a matrix is replaced by the nearest semi-orthogonal matrix, approximately (Jordan et al. 2024,
"Muon: an optimizer for hidden layers in neural networks"), scaled so that its root mean square is about Adam's: then
both take one learning rate and one weight decay (Liu et al. 2025, arXiv 2502.16982, section 2.2).

Shape legend: N matrices of one shape, M matrices of all, R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from train.optimizers import EMA, CountedUpdates

LEAST_SIDE = 16  # rows and columns from which a parameter counts as a matrix; smaller ones, such as outputs, take Adam
RMS = 0.2  # root mean square of an update at a learning rate of 1, as Adam's typically is
# Quintic that moves singular values of (0, 1] to about 1 (Jordan et al. 2024), applied so many times.
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


class MuonEma(CountedUpdates, torch.optim.Optimizer):
    """Muon with Nesterov momentum for matrices and kernels, AdamW for all else, and the EMA in the slot ``ema``.

    A kernel counts as the matrix (first axis, all others). So does the table of an embedding, for which Muon is not
    meant. ``betas`` are those of AdamW. With ``skip`` set, `step` does nothing. Never waits for the device.
    """

    EPS = 1e-8

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        ema_decay: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay}, ema_decay=ema_decay)
        self.momentum, self.betas = momentum, betas

    @staticmethod
    def slots(shape: torch.Size) -> tuple[str, ...]:
        """Returns the names of the state tensors of a parameter of this shape."""
        return ("momentum", EMA) if is_matrix(shape) else ("exp_avg", "exp_avg_sq", EMA)

    def allocate(self, params: Iterable[Tensor]) -> None:
        """Creates the state of ``params`` without one: zero moments, the EMA equal to the weight."""
        for param in params:
            if not self.state[param]:
                names = self.slots(param.shape)
                state = {name: torch.zeros_like(param) for name in names if name != EMA}
                self.state[param] = state | {EMA: param.detach().clone()}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates weights and EMA in place from the gradients."""
        if self.skip:
            return
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            self.allocate(params)
            if decay := group["lr"] * group["weight_decay"]:
                torch._foreach_mul_(params, 1 - decay)
            by_count = self._count(params)
            for update, counted in by_count.items():
                self._step_vectors([param for param in counted if not is_matrix(param.shape)], update, group["lr"])
            by_rows: dict[int, dict[tuple[int, int], list[Tensor]]] = {}
            for param in params:
                if is_matrix(param.shape):
                    shape = (param.shape[0], param[0].numel())
                    by_rows.setdefault(min(shape), {}).setdefault(shape, []).append(param)
            for by_shape in by_rows.values():
                self._step_matrices(by_shape.values(), group["lr"])
            self._update_ema(by_count, self.state)

    def _step_matrices(self, by_shape: Collection[Sequence[Tensor]], rate: float) -> None:
        """Updates matrices with the same smaller side, given by shape."""
        params = [param for same in by_shape for param in same]
        grads = [param.grad for param in params if param.grad is not None]
        momenta = [self.state[param]["momentum"] for param in params]
        torch._foreach_lerp_(momenta, grads, 1 - self.momentum)
        ahead = iter(torch._foreach_lerp(grads, momenta, self.momentum))  # Nesterov's
        stacks = [torch.stack([value.flatten(1) for value in islice(ahead, len(same))]) for same in by_shape]
        updates: list[Tensor] = []
        for update_NRC in orthogonalise(stacks):
            scale = -rate * RMS * math.sqrt(max(update_NRC.shape[1:]))
            updates += (update_NRC * scale).unbind()
        torch._foreach_add_(params, [update.view_as(param) for update, param in zip(updates, params, strict=True)])

    def _step_vectors(self, params: Sequence[Tensor], update: int, rate: float) -> None:
        """Updates all other parameters by Adam, at its ``update``-th update (from 1)."""
        if not params:
            return
        first, second = self.betas
        grads = [param.grad for param in params if param.grad is not None]
        means, squares = ([self.state[param][name] for param in params] for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(means, grads, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, grads, grads, 1 - second)
        sizes = torch._foreach_sqrt(squares)
        torch._foreach_div_(sizes, math.sqrt(1 - second**update))
        torch._foreach_add_(sizes, self.EPS)
        torch._foreach_addcdiv_(list(params), means, sizes, -rate / (1 - first**update))


def is_matrix(shape: torch.Size) -> bool:
    """Returns whether a parameter of this shape has an orthogonal update."""
    return len(shape) >= 2 and min(shape[0], math.prod(shape[1:])) >= LEAST_SIDE


def orthogonalise(stacks: Sequence[Tensor]) -> list[Tensor]:
    """Returns stacks of matrices (N, R, C) with their singular vectors, and singular values of about 1 (0.7 to 1.2).

    The smaller of R and C is the same in all stacks. Values below about 1/1000 of a matrix's Frobenius norm stay
    smaller. The iteration runs on the smaller Gram matrix alone: each step multiplies from one side by a polynomial of
    it, and all of them commute. For kernels that is a third of the operations, and all stacks take the steps together.
    """
    wide = [x_NRC.mT if x_NRC.shape[1] > x_NRC.shape[2] else x_NRC for x_NRC in stacks]
    wide = [x_NRC.float() / (x_NRC.float().norm(dim=(1, 2), keepdim=True) + 1e-7) for x_NRC in wide]
    product_MRR = iterate_quintic(torch.cat([x_NRC @ x_NRC.mT for x_NRC in wide]))
    parts = product_MRR.split([len(x_NRC) for x_NRC in wide])
    done = [part_NRR @ x_NRC for part_NRR, x_NRC in zip(parts, wide, strict=True)]
    return [y if y.shape == x.shape else y.mT for y, x in zip(done, stacks, strict=True)]


def iterate_quintic(gram_MRR: Tensor) -> Tensor:
    """Returns the product of polynomials by which matrices of these Gram matrices become orthogonal."""
    one, three, five = QUINTIC
    identity_RR = torch.eye(gram_MRR.shape[1], dtype=gram_MRR.dtype, device=gram_MRR.device) * one
    product_MRR = None
    for iteration in range(ITERATIONS):
        step_MRR = torch.baddbmm(gram_MRR, gram_MRR, gram_MRR, beta=three, alpha=five) + identity_RR
        product_MRR = step_MRR if product_MRR is None else step_MRR @ product_MRR
        if iteration + 1 < ITERATIONS:
            gram_MRR = step_MRR @ gram_MRR @ step_MRR
    assert product_MRR is not None
    return product_MRR
