"""torch's global settings of a GPU: fast, or the same result each time."""

from __future__ import annotations

import os

import torch

# Read by cuBLAS when it first gets a handle, and by NCCL when ranks first connect: hence before both. A ring adds the
# ranks' gradients in one fixed order, where NCCL otherwise chooses by size and topology.
REPEATABLE_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring"}


def prepare_environment(deterministic: bool) -> None:
    """Sets environment variables for repeatable results, except those that are set; before CUDA and NCCL are used."""
    if deterministic:
        for name, value in REPEATABLE_ENVIRONMENT.items():
            os.environ.setdefault(name, value)


def configure_device(device: torch.device, deterministic: bool) -> None:
    """Sets how this process computes on a GPU; nothing on a CPU, which gives the same result each time anyway.

    Products and convolutions of float32 use TF32, and cuDNN tries its algorithms on each new shape and keeps the
    fastest. With ``deterministic`` cuDNN tries nothing, since the fastest may differ between runs, and an operator
    without a repeatable algorithm raises RuntimeError.
    """
    if device.type != "cuda":
        return
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic)
