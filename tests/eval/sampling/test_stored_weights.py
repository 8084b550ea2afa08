"""Weights in fewer bits: how far they are off, how small they are, and that adapters go in before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dataprep.io.errors import UserError
from eval.sampling import loading
from eval.sampling.cascade import Cascade
from eval.sampling.stored_weights import StoredWeights, count_weight_bytes, store_weights
from tests.helpers.cascades import BASE, WordEncoder, difference, export, trained
from tests.helpers.unets import make_inputs, predict


def make_network() -> nn.Module:
    network: nn.Module = trained(BASE).eval().requires_grad_(False)
    return network


@pytest.mark.parametrize(("kind", "most", "size"), [("bfloat16", 2**-8, 0.55), ("int8", 0.5 / 127, 0.35)])
def test_weights_are_rounded_and_small(kind: StoredWeights, most: float, size: float) -> None:
    whole, stored = make_network(), make_network()
    store_weights(stored, kind)
    assert count_weight_bytes(stored) < size * count_weight_bytes(whole)
    layers = {name: layer for name, layer in whole.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    found = dict(stored.named_modules())
    for name, layer in layers.items():
        weight, kept = layer.weight, found[name].weight
        assert isinstance(kept, torch.Tensor) and kept.dtype == weight.dtype
        row = weight.abs().flatten(1).amax(dim=1)  # of an output; int8 has a scale for each
        off = (kept - weight).abs().flatten(1).amax(dim=1)
        assert bool((off <= most * row + 1e-9).all()) and bool((off > 0).any())
    given = make_inputs(BASE)
    one, other = predict(whole, given), predict(stored, given)
    assert 0 < float((one - other).std()) < 0.05 * float(one.std())


def test_a_layer_of_zeros_stays_one() -> None:
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    store_weights(nn.Sequential(layer).requires_grad_(False), "int8")
    assert float(layer(torch.ones(1, 3)).sum()) == float(layer.bias.sum())


def test_a_cascade_of_rounded_weights_samples_nearly_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loader:
        @staticmethod
        def from_folder(*arguments: object, **options: object) -> WordEncoder:
            return WordEncoder()

    monkeypatch.setattr(loading, "TextEncoder", Loader)
    folder = export(tmp_path)
    images = [
        Cascade.from_pretrained(folder, weights=kind)("a cat").images[0] for kind in ("whole", "bfloat16", "int8")
    ]
    assert 0 < difference(images[0], images[1]) < 60 and 0 < difference(images[0], images[2]) < 60
    with pytest.raises(UserError, match="weights 'int4' is unknown; take one of whole, bfloat16, int8"):
        Cascade.from_pretrained(folder, weights="int4")  # type: ignore[arg-type]
