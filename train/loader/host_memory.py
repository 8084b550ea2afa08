"""Memory of the host from which a GPU copies while it computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def empty_host(shape: Sequence[int], dtype: np.dtype) -> Tensor:  # type: ignore[type-arg]
    """Returns an empty tensor on the CPU, in pinned memory if this process uses a GPU.

    torch keeps freed pinned blocks and gives them out again once the copies from them have ended.
    """
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    return torch.empty(tuple(shape), dtype=kind, pin_memory=torch.cuda.is_initialized())
