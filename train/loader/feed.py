"""Brings batches to the device that trains, as few bytes, while it computes.

For a GPU a batch is gathered into pinned memory by the threads that load. One thread more sends it, in a stream of its
own: it copies uint8 pixels and captions as stored, unpacks the captions on the device, and makes the batch's random
numbers there. The thread that computes only makes its stream wait for that, which mostly has ended: nothing waits for
the device, and a batch costs that thread next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from train.loader.loader import Batch, unpack_batch
from train.loader.sampler import Draw, SampleRandom
from train.loader.stored_text import StoredText


class FedBatch(NamedTuple):
    """A batch on its way to the device, its random numbers, and the event after both; None: they are there."""

    batch: Batch
    random: SampleRandom
    ready: torch.cuda.Event | None


class DeviceFeed:
    """Sends the batches of a rank to its device: `send` in any one thread, `receive` in the one that computes.

    A batch keeps ``index`` on the host, where it costs nothing to read, and gets ``index_B``, the same on the device.
    Random numbers are made ahead as the batches of equal shapes before asked for them.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device, self.seed = device, seed
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.asked: dict[Any, dict[Draw, None]] = {}  # by the shapes of a batch

    def send(self, batch: Batch, step: int) -> FedBatch:
        """Starts to bring a batch of `train.loader.loader.Stream.stored_batch` to the device, for update ``step``."""
        batch = batch | {"index_B": batch["index"]}
        if self.stream is None:
            return FedBatch(*self._prepare(batch, lambda value: value.to(self.device), step), None)
        with torch.cuda.stream(self.stream):
            move = lambda value: _pin(value).to(self.device, non_blocking=True)  # noqa: E731
            prepared = self._prepare(batch, move, step)
            ready = torch.cuda.Event()
            ready.record(self.stream)
        return FedBatch(*prepared, ready)

    def _prepare(self, batch: Batch, move: Callable[[Tensor], Tensor], step: int) -> tuple[Batch, SampleRandom]:
        shapes = tuple((name, value.shape) for name, value in batch.items() if isinstance(value, Tensor))
        batch = unpack_batch(map_tensors(batch, move))
        random = SampleRandom.of_batch(self.seed, step, batch, self.asked.setdefault(shapes, {}))
        random.draw_ahead()
        return batch, random

    def receive(self, fed: FedBatch) -> tuple[Batch, SampleRandom]:
        """Returns a batch and its random numbers, for use in the current stream."""
        if fed.ready is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(fed.ready)
            # Their memory belongs to the other stream, which must not reuse it while this one still reads it.
            map_tensors(fed.batch, lambda value: _use(value, current))
            for value in fed.random.ahead.values():
                value.record_stream(current)
        return fed.batch, fed.random


def map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Returns the batch with ``function`` applied to its tensors, those of `StoredText` too, except ``index``."""

    def apply(name: str, value: Any) -> Any:
        if isinstance(value, StoredText):
            return value.map(function)
        return function(value) if isinstance(value, Tensor) and name != "index" else value

    return {name: apply(name, value) for name, value in batch.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Returns a batch on ``device``, as `DeviceFeed` makes it."""
    feed = DeviceFeed(device, 0)
    return feed.receive(feed.send(batch, 0))[0]


def _pin(value: Tensor) -> Tensor:
    return value if value.is_pinned() or value.device.type != "cpu" else value.pin_memory()


def _use(value: Tensor, stream: torch.cuda.Stream) -> Tensor:
    value.record_stream(stream)
    return value
