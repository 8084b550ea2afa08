"""Copies from and to a device that hold up neither the device nor the thread that starts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pin(value: Tensor, device: str) -> Tensor:
    """Returns ``value`` in memory from which ``device`` copies by itself: pinned for a GPU, else as it is."""
    return value.pin_memory() if device.startswith("cuda") and not value.is_pinned() else value


def send(value: Tensor, device: str) -> Tensor:
    """Returns ``value`` on ``device``; the thread does not wait for the copy to a GPU."""
    return pin(value, device).to(device, non_blocking=device.startswith("cuda"))


class HostCopy:
    """A copy of a tensor to the host, started at once; `wait` for it when the device has its next work already."""

    def __init__(self, value: Tensor) -> None:
        import torch

        self.event: torch.cuda.Event | None = None
        self.value = value
        if value.is_cuda:
            self.value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self.value.copy_(value, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def wait(self) -> Tensor:
        """Returns the copy, on the CPU."""
        if self.event is not None:
            self.event.synchronize()
        return self.value
