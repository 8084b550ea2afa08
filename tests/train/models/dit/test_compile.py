"""The diffusion transformer under torch.compile: one graph, with and without recomputation; same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.compiled import compute_gradients
from tests.helpers.dits import build_awake_dit, dit_config
from tests.helpers.unets import make_inputs


@pytest.mark.parametrize(
    ("preset", "changes", "recompute", "backend"),
    [
        ("dit-micro-base", {"text_layers": 1, "image_embedding_dim": 4}, False, "eager"),
        ("dit-micro-sr", {}, True, "eager"),
        ("dit-micro-base", {"depth": 1}, True, "aot_eager"),  # traces the backward pass too
        pytest.param("dit-micro-sr", {"modulation": "block"}, True, "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_one_graph(preset: str, changes: dict[str, Any], recompute: bool, backend: str) -> None:
    config = dit_config(preset, **changes)
    given = make_inputs(config) | {"text_keep_B": torch.tensor([True, False])}
    model = build_awake_dit(config).requires_grad_(True)
    plain = compute_gradients(model, model, given)
    if recompute:
        model.enable_recompute()
    torch._dynamo.reset()
    # fullgraph: a graph break is an error.
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(compute_gradients(compiled, model, given), plain, rtol=1e-4, atol=1e-5)
