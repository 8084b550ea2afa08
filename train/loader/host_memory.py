"""Memory of the host from which a GPU copies while it computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def empty_host(shape: Sequence[int], dtype: np.dtype) -> Tensor:
    """Returns an empty tensor on the CPU, in pinned memory if this process uses a GPU.

    torch keeps freed pinned blocks and gives them out again once the copies from them have ended.
    """
    if not torch.cuda.is_initialized():
        return torch.from_numpy(np.empty(tuple(shape), dtype))  # NumPy asks for huge pages, torch does not
    return torch.empty(tuple(shape), dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)
