"""The part of DeepSpeed's engine that training uses, in plain PyTorch, where each rank holds the whole model (ZeRO 0).

Several ranks train under DistributedDataParallel (DDP), which reduces gradients bucket by bucket while the backward
pass goes on. DeepSpeed without ZeRO reduces them after it, so that the network's time adds to the device's.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.muon import MuonEma
from train.optimizers import AdafactorEma, AdamWEma


class ReplicaEngine:
    """A model with its optimizer; gradients are averaged over the micro-batches of an update and over the ranks.

    Every trained parameter has to take part in every loss.
    """

    def __init__(
        self, module: nn.Module, optimizer: AdamWEma | AdafactorEma | MuonEma, accumulation: int, world: int
    ) -> None:
        self.optimizer, self.accumulation, self.micro = optimizer, accumulation, 0
        self.model = module
        if world > 1:
            # Buckets are the gradients, not copies of them. Buffers, if any, stay those of each rank, as under ZeRO.
            self.model = DistributedDataParallel(module, gradient_as_bucket_view=True, forward_sync_buffers=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        reduces = not isinstance(self.model, DistributedDataParallel) or self.is_gradient_accumulation_boundary()
        # Only the last micro-batch of an update sends gradients: the sum of all.
        with nullcontext() if reduces else self.model.no_sync():  # type: ignore[operator]
            return self.model(*args, **kwargs)

    def train(self, mode: bool) -> None:
        """Sets training or evaluation mode."""
        self.model.train(mode)

    def is_gradient_accumulation_boundary(self) -> bool:
        """Returns whether this micro-batch is the last of its update."""
        return self.micro % self.accumulation == self.accumulation - 1

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a micro-batch's loss."""
        (loss / self.accumulation).backward()

    def step(self) -> None:
        """Ends a micro-batch; updates after the last of an update."""
        if self.is_gradient_accumulation_boundary():
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.micro += 1


def prepare_compilation(world: int, recompute: bool) -> None:
    """Sets how torch.compile treats a model under DDP.

    It compiles a graph per bucket of gradients, so that each is reduced as soon as it is there; but it cannot split a
    graph with recomputed blocks, which is compiled whole.
    """
    if world > 1:
        import torch._dynamo

        torch._dynamo.config.optimize_ddp = not recompute
