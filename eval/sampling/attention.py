"""Records where a stage looks for each token of a prompt while it samples.

Shape legend: B batch, N positions, T context tokens, L tokens of a prompt, K spans of time, H W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from train.models.base import Denoiser
from train.models.conditioning import NULL_TOKENS
from train.models.text_attention import TextAttention

SPANS = 4  # of time: the evaluations of a stage in equal groups


class AttentionMaps(NamedTuple):
    """Where one image of a stage looked.

    ``maps_KLHW`` is float32: the share of a position's attention that a token gets, mean over heads, layers, and the
    evaluations of a span of time. ``noise`` is the noise level sigma at the first and the last evaluation of each span.
    """

    maps_KLHW: np.ndarray
    noise: list[tuple[float, float]]


def find_text_layers(model: Any) -> list[Any]:
    """Returns the layers of a network that read the caption and can show where they look; [] if there are none."""
    return [layer for layer in model.modules() if isinstance(layer, TextAttention) and layer.reads_text]


class AttentionRecorder:
    """Watches the layers of a network that read the caption, within a ``with``.

    Besides the forward pass queries and keys are computed once more.
    """

    def __init__(self, model: Denoiser, size: tuple[int, int]) -> None:
        """``size``: height and width of the stage's images."""
        assert isinstance(model, nn.Module)
        self.model, self.size, self.layers = model, size, find_text_layers(model)
        self.handles: list[Any] = []
        self.seen: list[Tensor] = []  # of the layers in the current forward pass, (B, T, H, W) of different sizes
        self.parts: list[Tensor] = []  # of the forward passes of the current evaluation
        self.evaluations: list[tuple[float, Tensor]] = []  # log-SNR, (B, T, H, W)

    def __enter__(self) -> Self:
        for layer in self.layers:
            assert isinstance(layer, nn.Module)
            self.handles.append(layer.register_forward_pre_hook(self._watch_layer))
        self.handles.append(self.model.register_forward_hook(self._end_pass))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _watch_layer(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, TextAttention)
        weights_BNT = layer.weigh_text(*inputs)
        height = round((weights_BNT.shape[1] * self.size[0] / self.size[1]) ** 0.5)
        self.seen.append(weights_BNT.transpose(1, 2).unflatten(2, (height, -1)))

    def _end_pass(self, *_: Any) -> None:
        largest = max((tuple(part.shape[2:]) for part in self.seen), key=lambda shape: shape[0] * shape[1])
        resized = [
            functional.interpolate(part, largest, mode="bilinear", align_corners=False)
            if tuple(part.shape[2:]) != largest
            else part
            for part in self.seen
        ]
        self.parts.append(torch.stack(resized).mean(0))
        self.seen = []

    def end_evaluation(self, log_snr: float, batch: int) -> None:
        """Ends an evaluation, of which the first ``batch`` rows have the prompts (the others serve guidance)."""
        self.evaluations.append((log_snr, torch.cat(self.parts)[:batch].half().cpu()))
        self.parts = []

    def collect(self, lengths: Sequence[int]) -> list[AttentionMaps]:
        """Returns the maps of each row of the batch, whose prompts have these numbers of tokens."""
        groups = np.array_split(np.arange(len(self.evaluations)), min(SPANS, len(self.evaluations)))
        means_KBTHW = torch.stack([average([self.evaluations[i][1] for i in group]) for group in groups]).numpy()
        sigma = [float(torch.sigmoid(torch.tensor(-log_snr)).sqrt()) for log_snr, _ in self.evaluations]
        noise = [(sigma[group[0]], sigma[group[-1]]) for group in groups]
        return [
            AttentionMaps(means_KBTHW[:, row, NULL_TOKENS : NULL_TOKENS + length], noise)
            for row, length in enumerate(lengths)
        ]


def average(parts: Sequence[Tensor]) -> Tensor:
    """Returns the mean of float16 tensors, computed in float32."""
    return torch.stack([part.float() for part in parts]).mean(0)
