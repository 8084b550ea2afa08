"""The U-Net under torch.compile: one graph, forward and backward, recomputed or not, and the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from unet_fakes import awake, inputs

from train.models.presets import unet_config


@pytest.mark.parametrize(
    ("preset", "changes", "recompute", "backend"),
    [
        ("micro-base", {"text_layers": 1}, False, "eager"),
        ("micro-sr", {"combine": "level", "dropout": 0.1}, True, "eager"),
        ("micro-sr", {"feed_forward": 2}, True, "aot_eager"),  # traces the backward pass too
        pytest.param("micro-base", {}, True, "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_one_graph(preset: str, changes: dict[str, Any], recompute: bool, backend: str) -> None:
    config = unet_config(preset, **changes)
    given = inputs(config) | {"text_keep_B": torch.tensor([True, False])}
    model = awake(config).requires_grad_(True)
    plain = gradients(model, model, given)
    if recompute:
        model.enable_recompute()
    torch._dynamo.reset()
    # fullgraph: a graph break is an error.
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(gradients(compiled, model, given), plain, rtol=1e-4, atol=1e-5)


def gradients(call: Any, model: torch.nn.Module, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The output and every parameter's gradient of a mean square."""
    model.zero_grad()
    output = call(**given)
    output.square().mean().backward()
    return {"output": output.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
