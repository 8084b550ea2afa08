"""What the training loop requires of a task: the model, the loss of a batch, and the export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from train.loader.loader import Batch
from train.loader.sampler import SampleRandom


class Task(Protocol):
    """What is trained."""

    def build(self) -> nn.Module:
        """Returns the model, with fresh weights from torch's global generator."""

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean loss of a batch (scalar), and scalars to log. ``model`` is called like the module."""

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Writes a state dict to a local folder in the format that the next stage loads."""


@runtime_checkable
class PreparingTask(Protocol):
    """A task whose loss has a part that does not need the model."""

    def prepare(self, batch: Batch, random: SampleRandom) -> Batch:
        """Returns the batch with what `Task.loss` needs of it besides the model, on the device of ``random``.

        Called in the thread that feeds the device, ahead of the one that computes; must not use torch's global
        generator. `Task.loss` calls it itself where it gets a batch that is not prepared. Tensors are values of the
        batch, or in (named) tuples.
        """


@runtime_checkable
class ValidatingTask(Protocol):
    """A task with more metrics on held-out data than on training data."""

    def validate(
        self, model: Callable[..., Any], batch: Batch, random: SampleRandom
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Task.loss`; a metric may also be a pair (2,) of a sum and a count, logged as their quotient."""


@runtime_checkable
class AdaptableTask(Protocol):
    """A task whose model can be trained by an adapter."""

    component: str  # what the model is to diffusers, in front of the names in an adapter's file: unet, text_encoder


class Companion(Protocol):
    """What a task trains itself beside its model, whole on every rank: a codebook, a discriminator.

    `Task.loss` feeds it in training. All methods but `state` are collective.
    """

    def begin(self, module: nn.Module) -> None:
        """Called once before the first update, with the model on its device."""

    def end_update(self, applied: bool) -> dict[str, Tensor]:
        """Ends an update, after the model's; ``applied``: whether that was not skipped. Returns scalars to log."""

    def state(self) -> dict[str, Tensor]:
        """Returns what a checkpoint stores, the same on every rank."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Sets what `state` returned."""


@runtime_checkable
class AccompaniedTask(Protocol):
    """A task that trains more than its model."""

    companions: dict[str, Companion]


@runtime_checkable
class PartlyAdaptableTask(AdaptableTask, Protocol):
    """A task of whose model an adapter is for a part."""

    def adapted_part(self, model: nn.Module) -> nn.Module:
        """Returns the part of a model of `Task.build`; ``component`` names it, and is its attribute there."""


@runtime_checkable
class LoadingTask(Protocol):
    """A task whose `Task.build` reads weights."""

    def build_random(self) -> nn.Module:
        """Returns a model of the same shapes with any weights, for counting its operations."""


@runtime_checkable
class SamplingTask(Protocol):
    """A task whose model generates images."""

    def sample_grid(self, weights: dict[str, Tensor], batch: Batch, seed: int) -> np.ndarray:
        """Returns a grid of samples for the conditions of a batch, uint8 RGB (H, W, 3), from a state dict on the CPU.

        Computes on the device on which the batch lies.
        """
