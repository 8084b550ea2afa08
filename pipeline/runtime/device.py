"""The device of a worker's model."""

from __future__ import annotations


def worker_device() -> str:
    """Returns "cuda" if Ray assigned a GPU to this worker (it hides all others), else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
