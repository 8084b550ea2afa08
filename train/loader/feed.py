"""Brings batches to the device that trains, as few bytes, while it computes.

For a GPU a batch is gathered into pinned memory by the threads that load. One thread more sends it, in a stream of its
own: it copies uint8 pixels and captions as stored, unpacks the captions on the device, and does what the task prepares
without the model, such as drawing noise. The thread that computes only makes its stream wait for that, which mostly has
ended: nothing waits for the device, and a batch costs that thread next to nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from train.loader.loader import Batch, unpack_batch
from train.loader.sampler import SampleRandom

PrepareBatch = Callable[[Batch, SampleRandom], Batch]


class FedBatch(NamedTuple):
    """A batch on its way to the device, its random numbers, and the event after both; None: they are there."""

    batch: Batch
    random: SampleRandom
    ready: torch.cuda.Event | None


class DeviceFeed:
    """Sends the batches of a rank to its device: `send` in any thread, `receive` in the one that computes.

    A batch keeps ``index`` on the host, where it costs nothing to read, and gets ``index_B``, the same on the device.
    ``prepare`` is `train.task.PreparingTask.prepare`, for a task that has it. ``few_lengths``: captions are padded to
    few lengths on a CPU too, for a compiled model, which may be compiled again for a new length.
    """

    def __init__(
        self, device: torch.device, seed: int, prepare: PrepareBatch | None = None, few_lengths: bool = False
    ) -> None:
        self.device, self.seed, self.prepare, self.few_lengths = device, seed, prepare, few_lengths
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.lock = threading.Lock()  # a task's tokenizer serves one thread at a time

    def send(self, batch: Batch, step: int) -> FedBatch:
        """Starts to bring a batch of `train.loader.loader.Stream.stored_batch` to the device, for update ``step``."""
        with self.lock:
            if self.stream is None:
                return FedBatch(*self._send(batch, lambda value: value.to(self.device), step), None)
            with torch.cuda.stream(self.stream):
                sent = self._send(batch, lambda value: _pin(value).to(self.device, non_blocking=True), step)
                ready = torch.cuda.Event()
                ready.record(self.stream)
            return FedBatch(*sent, ready)

    def _send(self, batch: Batch, move: Callable[[Tensor], Tensor], step: int) -> tuple[Batch, SampleRandom]:
        batch = unpack_batch(map_tensors(batch | {"index_B": batch["index"]}, move), self.few_lengths)
        random = SampleRandom.of_batch(self.seed, step, batch)
        return batch if self.prepare is None else self.prepare(batch, random), random

    def receive(self, fed: FedBatch) -> tuple[Batch, SampleRandom]:
        """Returns a batch and its random numbers, for use in the current stream."""
        if fed.ready is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(fed.ready)
            # Its memory belongs to the other stream, which must not reuse it while this one still reads it.
            map_tensors(fed.batch, lambda value: _use(value, current))
        return fed.batch, fed.random


def map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Returns the batch with ``function`` applied to its tensors, those in tuples too, except ``index``."""

    def apply(value: Any) -> Any:
        return function(value) if isinstance(value, Tensor) else value

    return {
        name: tree_map(apply, value) if name != "index" and isinstance(value, Tensor | tuple) else value
        for name, value in batch.items()
    }


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Returns a batch on ``device``, as `DeviceFeed` makes it."""
    feed = DeviceFeed(device, 0)
    return feed.receive(feed.send(batch, 0))[0]


def _pin(value: Tensor) -> Tensor:
    return value if value.is_pinned() or value.device.type != "cpu" else value.pin_memory()


def _use(value: Tensor, stream: torch.cuda.Stream) -> Tensor:
    value.record_stream(stream)
    return value
