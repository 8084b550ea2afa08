"""Gradients of a network, called as it is or compiled."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers.unets import predict


def compute_gradients(call: Any, model: torch.nn.Module, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the output, and the gradient of its mean square for every parameter."""
    model.zero_grad()
    output = predict(call, given)
    output.square().mean().backward()
    return {"output": output.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
