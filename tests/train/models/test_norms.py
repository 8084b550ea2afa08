"""RMSNorm against torch's: values, gradients, and where torch's own is used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from train.models import norms
from train.models.norms import RMSNorm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_values_and_gradients_are_those_of_torch(affine: bool, transposed: bool) -> None:
    torch.manual_seed(0)
    ours = RMSNorm(8, 1e-3, elementwise_affine=affine).double()
    torchs = nn.RMSNorm(8, 1e-3, elementwise_affine=affine).double()
    if affine:
        nn.init.normal_(ours.weight)
        torchs.load_state_dict(ours.state_dict())
    x, grad = torch.randn(2, 2, 3, 5, 8, dtype=torch.float64)
    x[0, 0, 0] = 0
    found, wanted = (run(norm, x, grad, transposed) for norm in (ours, torchs))
    torch.testing.assert_close(found, wanted)


def run(norm: nn.RMSNorm, x: Tensor, grad: Tensor, transposed: bool) -> list[Tensor]:
    """Returns the output, and the gradients of the input and the weight."""
    leaf = x.clone().requires_grad_()
    out = norm(leaf.transpose(1, 2) if transposed else leaf)
    out.backward(grad.transpose(1, 2) if transposed else grad)
    return [
        out.detach(),
        *(value.grad for value in (leaf, norm.weight) if value is not None and value.grad is not None),
    ]


def test_frozen_weights_and_inputs_get_no_gradient() -> None:
    norm = RMSNorm(4, 1e-6).requires_grad_(False)
    x = torch.randn(3, 4, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None and norm.weight.grad is None
    assert not norm(x.detach()).requires_grad


def test_narrow_numbers_go_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, norm = torch.randn(3, 4), RMSNorm(4, 1e-6)
    wanted = nn.RMSNorm(4, 1e-6).bfloat16()(x.bfloat16())
    monkeypatch.setattr(norms._Normalized, "apply", lambda *given: pytest.fail("not torch's own"))
    torch.testing.assert_close(norm.bfloat16()(x.bfloat16()), wanted)
