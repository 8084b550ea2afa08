"""The perceptual distance against torchvision's own layers, in every layout of weights, narrow ones in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from dataprep.io.errors import UserError
from dataprep.io.model_imports import declare_torchvision_operators
from train.models import perceptual
from train.models.perceptual import VGG16, PerceptualDistance, PerceptualTerm, load_perceptual
from train.models.perceptual_config import PerceptualConfig

NARROW = tuple((3 + number,) * len(widths) for number, widths in enumerate(VGG16))
TAPS = (3, 8, 15, 22, 29)  # relu1_2, ..., relu5_3 among torchvision's layers


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """Returns torchvision's layers of VGG16 with fewer channels, and makes ours as narrow."""
    declare_torchvision_operators()
    from torchvision.models.vgg import make_layers

    monkeypatch.setattr(perceptual, "VGG16", NARROW)
    torch.manual_seed(0)
    widths: list[Any] = [width for part in NARROW for width in (*part, "M")]
    layers: nn.Sequential = make_layers(widths, batch_norm=False)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.bias, std=0.1)  # type: ignore[arg-type]
    return layers


def images(*seeds: int, size: int = 24) -> Tensor:
    return torch.cat([torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(s)) for s in seeds]) * 2 - 1


def linear_weights() -> dict[str, Tensor]:
    return {f"lin{k}.model.1.weight": torch.rand(1, part[-1], 1, 1) for k, part in enumerate(NARROW)}


def lpips_state(layers: nn.Sequential) -> dict[str, Tensor]:
    """The state dict of lpips.LPIPS(net="vgg"): its slices end at the taps, and keep torchvision's numbers."""
    state = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
    for name, value in layers.state_dict().items():
        number = int(name.split(".")[0])
        slice_ = 1 + sum(number > tap for tap in TAPS)
        state[f"net.slice{slice_}.{name}"] = value
    linear = linear_weights()
    return state | linear | {name.replace("lin", "lins.", 1): value for name, value in linear.items()}


def reference(layers: nn.Sequential, one: Tensor, other: Tensor, linear: dict[str, Tensor] | None = None) -> Tensor:
    """LPIPS by its paper's equation 1, from torchvision's layers."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    total = torch.zeros(len(one))
    x, y = (((image + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1) for image in (one, other))
    for number, layer in enumerate(list(layers)[: TAPS[-1] + 1]):
        x, y = layer(x), layer(y)
        if number in TAPS:
            a, b = (functional.normalize(part, dim=1, eps=1e-5) for part in (x, y))
            weight = 1.0 if linear is None else linear[f"lin{TAPS.index(number)}.model.1.weight"]
            total = total + ((a - b).square() * weight).sum(1).mean((1, 2))
    return total


def test_the_layout_is_torchvisions_vgg16() -> None:
    declare_torchvision_operators()
    import torchvision

    with torch.device("meta"):
        theirs = torchvision.models.vgg16().features
        ours = PerceptualDistance()
    shapes = [tuple(layer.weight.shape) for layer in theirs if isinstance(layer, nn.Conv2d)]
    assert shapes == [tuple(layer.weight.shape) for layer in ours.convolutions()]
    assert [number for number in TAPS if isinstance(theirs[number], nn.ReLU)] == list(TAPS)
    pools = [number for number, layer in enumerate(theirs) if isinstance(layer, nn.MaxPool2d)]
    assert pools == [tap + 1 for tap in TAPS]


@pytest.mark.parametrize("kind", ["torchvision", "torchvision and lpips", "lpips", "safetensors"])
def test_the_distance_is_lpips(kind: str, narrow: nn.Sequential, tmp_path: Path) -> None:
    vision = {f"features.{name}": value for name, value in narrow.state_dict().items()}
    vision |= {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}
    state = lpips_state(narrow) if kind == "lpips" else vision
    path, linear = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth"), None
    save_file({k: v.clone() for k, v in state.items()}, path) if kind == "safetensors" else torch.save(state, path)
    if kind == "lpips":
        linear = {name: value for name, value in state.items() if name.startswith("lin") and "lins" not in name}
    config = PerceptualConfig(weights=str(path))
    if kind == "torchvision and lpips":
        linear = linear_weights()
        torch.save(linear, tmp_path / "vgg.pth")
        config = PerceptualConfig(weights=str(path), lpips=str(tmp_path / "vgg.pth"))
    distance = load_perceptual(config)
    one, other = images(1, 2), images(3, 4)
    # The published constants of LPIPS are ImageNet's, rounded.
    torch.testing.assert_close(distance(one, other), reference(narrow, one, other, linear), rtol=5e-3, atol=1e-4)
    assert distance(one, one).tolist() == [0.0, 0.0]
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def make_term(layers: nn.Sequential, tmp_path: Path, **changes: Any) -> PerceptualTerm:
    torch.save({f"features.{name}": value for name, value in layers.state_dict().items()}, tmp_path / "w.pth")
    return PerceptualTerm(PerceptualConfig(weights=str(tmp_path / "w.pth"), **changes))


def test_the_term_counts_where_there_is_little_noise(narrow: nn.Sequential, tmp_path: Path) -> None:
    term = make_term(narrow, tmp_path, weight=0.5, log_snr=2.0)
    one, other = images(1), images(2)
    distance = term.distance(one, other)
    for at, share in [(2.0, 0.5), (30.0, 1.0), (-30.0, 0.0)]:
        torch.testing.assert_close(term(one, other, torch.tensor([at])), 0.5 * share * distance, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("image", ["noise", "the same", "flat"])
def test_gradients_reach_the_predicted_image_and_are_finite(image: str, narrow: nn.Sequential, tmp_path: Path) -> None:
    term, true = make_term(narrow, tmp_path), images(2)
    guess = {"noise": images(1), "the same": true.clone(), "flat": torch.zeros_like(true)}[image].requires_grad_()
    term(guess, true, torch.tensor([3.0])).sum().backward()
    assert guess.grad is not None and bool(guess.grad.isfinite().all())
    assert bool(guess.grad.any()) is (image != "the same")


def test_files_of_another_layout_are_refused(narrow: nn.Sequential, tmp_path: Path) -> None:
    state = {f"features.{name}": value for name, value in narrow.state_dict().items()}
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save(state, good)

    def refused(match: str, content: Any, lpips: bool = False) -> None:
        torch.save(content, bad)
        names = {"weights": str(good), "lpips": str(bad)} if lpips else {"weights": str(bad)}
        with pytest.raises(UserError, match=match):
            load_perceptual(PerceptualConfig.model_validate(names))

    refused(r"perceptual\.weights=.*bad\.pth: 0 convolutions, VGG16 has 13; give VGG16", {"fc.weight": torch.zeros(2)})
    refused("12 convolutions", {name: value for name, value in state.items() if ".28." not in name})
    refused(r"convolution 0 has shape \(1, 3, 3, 3\)", state | {"features.0.weight": torch.zeros(1, 3, 3, 3)})
    refused("bias 0 has nothing", {name: value for name, value in state.items() if name != "features.0.bias"})
    refused("not a dict of tensors", [1, 2])
    refused(r"perceptual\.lpips=.*: 0 of 5 linear weights", state, lpips=True)
    refused(r"lin1 has shape \(9,\)", linear_weights() | {"lin1.model.1.weight": torch.rand(1, 9, 1, 1)}, lpips=True)
    bad.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"perceptual\.weights=.*bad\.pth: "):
        load_perceptual(PerceptualConfig(weights=str(bad)))
