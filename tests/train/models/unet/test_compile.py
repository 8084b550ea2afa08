"""The U-Net under torch.compile: one graph, forward and backward, with and without recomputation; same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.compiled import compute_gradients
from tests.helpers.unets import build_awake, make_inputs, unet_config


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
    given = make_inputs(config) | {"text_keep_B": torch.tensor([True, False])}
    model = build_awake(config).requires_grad_(True)
    plain = compute_gradients(model, model, given)
    if recompute:
        model.enable_recompute()
    torch._dynamo.reset()
    # fullgraph: a graph break is an error.
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(compute_gradients(compiled, model, given), plain, rtol=1e-4, atol=1e-5)
