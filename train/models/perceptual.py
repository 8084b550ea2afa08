"""Perceptual distance of images: LPIPS on VGG16 (Zhang et al. 2018), from local weights in the layouts of its authors.

Shape legend: B batch, C channels, H W height and width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from dataprep.io.errors import UserError
from train.models.perceptual_config import PerceptualConfig
from train.models.weight_files import read_tensor_file

# Widths of VGG16's convolutions, by the part whose last activation is compared (relu1_2, 2_2, 3_3, 4_3, 5_3).
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# ImageNet's mean and deviation of colours, for values in [-1, 1].
MEAN, DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Names of a convolution in torchvision's vgg16, and in lpips' LPIPS: the number is its place among all layers.
CONVOLUTION = re.compile(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)")
LINEAR = re.compile(r"lin(\d)\.model\.1\.weight")


class PerceptualDistance(nn.Module):
    """Frozen features of VGG16, and a weight for each of their channels."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.channel_weights = nn.ParameterList()
        width_in = 3
        for widths in VGG16:
            self.parts.append(nn.ModuleList(_chain_convolutions(width_in, widths)))
            self.channel_weights.append(nn.Parameter(torch.ones(widths[-1])))
            width_in = widths[-1]
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1))
        self.requires_grad_(False)

    def convolutions(self) -> list[nn.Conv2d]:
        """Returns the layers in order."""
        return [layer for layer in self.parts.modules() if isinstance(layer, nn.Conv2d)]

    def features(self, image_BCHW: Tensor) -> list[Tensor]:
        """Returns the activations of each part, of unit length over the channels at every place."""
        h_BCHW, found = (image_BCHW - self.mean) / self.deviation, []
        for number, part in enumerate(self.parts):
            if number:
                h_BCHW = functional.max_pool2d(h_BCHW, 2)
            assert isinstance(part, nn.ModuleList)
            for convolution in part:
                h_BCHW = functional.relu(convolution(h_BCHW))
            # Inside the root, unlike in LPIPS: the gradient of a place without any activation stays finite.
            found.append(h_BCHW * (h_BCHW.square().sum(1, keepdim=True) + 1e-10).rsqrt())
        return found

    def forward(self, one_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
        """Returns the distance (B,) of images in [-1, 1]: squared differences, weighted, mean over places, summed."""
        total_B = one_BCHW.new_zeros(len(one_BCHW))
        pairs = zip(self.features(one_BCHW), self.features(other_BCHW), self.channel_weights, strict=True)
        for here_BCHW, there_BCHW, weight_C in pairs:
            apart_BHW = ((here_BCHW - there_BCHW).square() * weight_C.view(-1, 1, 1)).sum(1)
            total_B = total_B + apart_BHW.mean(dim=(1, 2))
        return total_B


def _chain_convolutions(width_in: int, widths: tuple[int, ...]) -> list[nn.Module]:
    return [nn.Conv2d(a, b, 3, padding=1) for a, b in zip((width_in, *widths), widths, strict=False)]


class PerceptualTerm:
    """The term of a stage's loss; moves to the device of the images."""

    def __init__(self, config: PerceptualConfig) -> None:
        """Raises UserError for weights of another layout."""
        self.config, self.distance = config, load_perceptual(config)

    def __call__(self, x0_hat_BCHW: Tensor, x0_BCHW: Tensor, log_snr_B: Tensor) -> Tensor:
        """Returns the weighted distance (B,) of the predicted and the true clean image, in [-1, 1].

        With noise the prediction is a mean over many images, blurred by right: there the weight vanishes.
        """
        self.distance.to(x0_BCHW.device)
        weight_B = self.config.weight * (log_snr_B - self.config.log_snr).sigmoid()
        distance_B: Tensor = self.distance(x0_hat_BCHW, x0_BCHW)
        return weight_B * distance_B


def load_perceptual(config: PerceptualConfig) -> PerceptualDistance:
    """Loads the network, on the CPU; raises UserError for a file that is missing or of another layout."""
    tensors = _read(config.weights, "weights")
    linear = tensors if config.lpips is None else _read(config.lpips, "lpips")
    distance = PerceptualDistance()
    convolutions = distance.convolutions()
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := CONVOLUTION.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = tensor
    for number, (layer, place) in enumerate(zip(convolutions, sorted(found), strict=False)):
        _fill(layer.weight, found[place].get("weight"), f"convolution {number}", "weights", config.weights)
        assert layer.bias is not None
        _fill(layer.bias, found[place].get("bias"), f"bias {number}", "weights", config.weights)
    if len(found) != len(convolutions):
        raise _bad_file("weights", config.weights, f"{len(found)} convolutions, VGG16 has {len(convolutions)}")
    rated = {int(match[1]): tensor for name, tensor in linear.items() if (match := LINEAR.fullmatch(name))}
    if config.lpips is not None and len(rated) != len(VGG16):
        raise _bad_file("lpips", config.lpips, f"{len(rated)} of {len(VGG16)} linear weights (lin0.model.1.weight)")
    for number, tensor in rated.items():
        key, path = ("weights", config.weights) if config.lpips is None else ("lpips", config.lpips)
        own = distance.channel_weights[number] if number < len(VGG16) else torch.zeros(0)
        _fill(own, tensor.flatten(), f"lin{number}", key, path)
    return distance


def _fill(target: Tensor, value: Tensor | None, name: str, key: str, path: str) -> None:
    if value is None or value.shape != target.shape:
        shape = "nothing" if value is None else f"shape {tuple(value.shape)}"
        raise _bad_file(key, path, f"{name} has {shape}, VGG16's has {tuple(target.shape)}")
    target.data.copy_(value)


def _read(path: str, key: str) -> Mapping[str, Tensor]:
    try:
        return read_tensor_file(path)
    except ValueError as error:
        raise _bad_file(key, path, str(error)) from error


def _bad_file(key: str, path: str, reason: str) -> UserError:
    return UserError(f"perceptual.{key}={path}: {reason}; give VGG16 of torchvision, or LPIPS of net vgg")
