"""Copies of tensors in host memory, for a thread that writes them while training goes on."""

from __future__ import annotations

import torch
from torch import Tensor

SLAB = 2**26  # bytes of a pinned block: torch rounds them up to a power of two


class HostCopies:
    """Float32 copies in host memory.

    From a GPU they go to pinned blocks, without waiting for each, and `finish` waits for all of them. The blocks are
    kept for the copies after the next `begin`, since pinning takes longer than copying; until then they must not be
    needed any more. ``pinned`` false: plain memory, which is freed with the copies. ``copied`` counts bytes.
    """

    def __init__(self, device: torch.device, pinned: bool | None = None) -> None:
        self.device, self.pinned = device, device.type == "cuda" if pinned is None else pinned
        self.slabs: list[Tensor] = []
        self.slab = self.used = self.copied = 0

    def begin(self) -> None:
        """Forgets earlier copies: their memory is used again."""
        self.slab = self.used = self.copied = 0

    def copy(self, value: Tensor) -> Tensor:
        """Returns a copy of ``value``, whole only after `finish`."""
        self.copied += value.numel() * 4
        if not self.pinned:
            return value.detach().to("cpu", torch.float32, copy=True).contiguous()
        target = self._take(value.numel()).view(value.shape)
        target.copy_(value.detach(), non_blocking=True)
        return target

    def finish(self) -> None:
        """Waits until the copies are whole."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _take(self, count: int) -> Tensor:
        """Returns a piece of the blocks for ``count`` numbers."""
        while self.slab < len(self.slabs) and self.used + count > self.slabs[self.slab].numel():
            self.slab, self.used = self.slab + 1, 0
        if self.slab == len(self.slabs):
            pin = torch.cuda.is_available()
            self.slabs.append(torch.empty(max(SLAB // 4, count), dtype=torch.float32, pin_memory=pin))
        piece = self.slabs[self.slab][self.used : self.used + count]
        self.used += count
        return piece
