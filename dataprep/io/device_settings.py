"""torch's global settings of a GPU, for training and for frozen models: fast, or the same result each time."""

from __future__ import annotations

import os

import torch

from dataprep.io.errors import UserError
from dataprep.io.wording import count_of

# Read by cuBLAS when it first gets a handle, and by NCCL when ranks first connect: hence before both. A ring adds the
# ranks' gradients in one fixed order, where NCCL otherwise chooses by size and topology.
REPEATABLE_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring"}


def pick_device(name: str) -> str:
    """Returns the device ``name``; for ``auto`` "cuda" if torch finds a GPU, else "cpu".

    Raises UserError for a device that torch does not know, or that is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name!r} is unknown; take auto, cpu, cuda or cuda:1") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"device {name!r}: torch finds {count_of(count, 'GPU')}; take cpu, or leave it out")
    return name


def prepare_environment(deterministic: bool) -> None:
    """Sets environment variables for repeatable results, except those that are set; before CUDA and NCCL are used."""
    if deterministic:
        for name, value in REPEATABLE_ENVIRONMENT.items():
            os.environ.setdefault(name, value)


def configure_device(device: str | torch.device, deterministic: bool = False) -> None:
    """Sets how this process computes on a GPU; nothing on a CPU, which gives the same result each time anyway.

    Products and convolutions of float32 use TF32, and cuDNN tries its algorithms on each new shape and keeps the
    fastest. With ``deterministic`` cuDNN tries nothing, since the fastest may differ between runs, and an operator
    without a repeatable algorithm raises RuntimeError.
    """
    if torch.device(device).type != "cuda":
        return
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic)
