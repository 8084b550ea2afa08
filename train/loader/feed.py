"""Brings batches to the device that trains, as few bytes, while it computes.

For a GPU a batch is gathered into pinned memory, and a stream of its own copies uint8 pixels and captions as stored,
both in the thread that loads the batch. The training thread only makes its stream wait for the copy, which mostly has
ended, and unpacks the captions there. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from train.loader.loader import Batch, unpack_batch
from train.loader.stored_text import StoredText


class FedBatch(NamedTuple):
    """A batch on its way: its tensors on the device, and the event after their copy; None: they are there."""

    batch: Batch
    copied: torch.cuda.Event | None


class DeviceFeed:
    """Sends the batches of a rank to its device; `send` in any thread, `receive` in the one that computes.

    A batch keeps ``index`` on the host, where it costs nothing to read, and gets ``index_B``, the same on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, batch: Batch) -> FedBatch:
        """Starts the copy of a batch of `train.loader.loader.Stream.stored_batch`."""
        batch = batch | {"index_B": batch["index"]}
        if self.stream is None:
            if self.device.type == "cpu":  # unpacked in this thread, and not in the one that computes
                batch = unpack_batch(batch)
            return FedBatch(map_tensors(batch, lambda value: value.to(self.device)), None)
        with torch.cuda.stream(self.stream):
            sent = map_tensors(batch, lambda value: _pin(value).to(self.device, non_blocking=True))
            copied = torch.cuda.Event()
            copied.record(self.stream)
        return FedBatch(sent, copied)

    def receive(self, fed: FedBatch) -> Batch:
        """Returns a batch for use in the current stream, its captions unpacked."""
        if fed.copied is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(fed.copied)
            # Their memory belongs to the stream of the copies, which must not reuse it while this one still reads it.
            map_tensors(fed.batch, lambda value: _use(value, current))
        return unpack_batch(fed.batch)


def map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Returns the batch with ``function`` applied to its tensors, those of `StoredText` too, except ``index``."""

    def apply(name: str, value: Any) -> Any:
        if isinstance(value, StoredText):
            return value.map(function)
        return function(value) if isinstance(value, Tensor) and name != "index" else value

    return {name: apply(name, value) for name, value in batch.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Returns a batch on ``device``, as `DeviceFeed` makes it."""
    feed = DeviceFeed(device)
    return feed.receive(feed.send(batch))


def _pin(value: Tensor) -> Tensor:
    return value if value.is_pinned() or value.device.type != "cpu" else value.pin_memory()


def _use(value: Tensor, stream: torch.cuda.Stream) -> Tensor:
    value.record_stream(stream)
    return value
