"""Graceful shutdown of a training: SIGTERM or a request on any rank, agreed on by all ranks at the same step."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dataprep.io.signals import SHUTDOWN


class ShutdownConsensus:
    """Makes `SHUTDOWN` on any rank known to every rank at the same step.

    Each step, ranks exchange a flag over their own process group and read it one step later, so that no rank waits.
    """

    def __init__(self, world: int, timeout: float) -> None:
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if world > 1 else None
        self.pending: tuple[Any, torch.Tensor] | None = None

    def reached(self) -> bool:
        """Returns whether all ranks know of a request. Every rank calls it once per step."""
        if self.group is None:
            return SHUTDOWN.is_set()
        before, mine = self.pending, torch.tensor(int(SHUTDOWN.is_set()))
        self.pending = (dist.all_reduce(mine, group=self.group, async_op=True), mine)
        if before is None:
            return False
        work, total = before
        work.wait()
        return bool(total.item())
