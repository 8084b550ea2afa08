"""RMSNorm whose passes over memory are few on CPUs, where torch has no kernel for it.

Shape legend: M positions (any leading shape), C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FUSED_HERE = (torch.float32, torch.float64)  # narrower numbers are summed in float32 by torch's own


class RMSNorm(nn.RMSNorm):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis; the same as ``nn.RMSNorm``, with the same weights.

    On CPUs torch computes it operation by operation, backwards too, and each operation reads and writes all
    activations. GPUs have a kernel, and torch.compile joins the operations itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype not in FUSED_HERE or torch.compiler.is_compiling():
            return super().forward(x)
        out: Tensor = _Normalized.apply(x, self.weight, self.eps)
        return out


class _Normalized(torch.autograd.Function):
    """The norm and its gradient, by hand."""

    @staticmethod
    def forward(ctx: Any, x_MC: Tensor, weight_C: Tensor | None, eps: float) -> Tensor:
        length_M1 = torch.linalg.vector_norm(x_MC, dim=-1, keepdim=True)
        scale_M1 = (length_M1.square() / x_MC.shape[-1] + eps).rsqrt()
        ctx.save_for_backward(x_MC, weight_C, scale_M1)
        out_MC = x_MC * scale_M1
        return out_MC if weight_C is None else out_MC.mul_(weight_C)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_MC: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x_MC, weight_C, scale_M1 = ctx.saved_tensors
        product_MC = grad_MC * x_MC
        if weight_C is None:
            sum_M1, grad_weight_C = product_MC.sum(-1, keepdim=True), None
            grad_x_MC = grad_MC * scale_M1
        else:
            sum_M1 = (product_MC @ weight_C)[..., None]
            grad_weight_C = scale_M1.flatten() @ product_MC.flatten(0, -2)
            grad_x_MC = (grad_MC * weight_C).mul_(scale_M1)
        grad_x_MC.addcmul_(x_MC, sum_M1 * scale_M1.pow(3), value=-1 / x_MC.shape[-1])
        return grad_x_MC, grad_weight_C, None
