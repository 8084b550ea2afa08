"""What the C library does with memory that a training step has freed."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
BLOCK, KEPT = 2**30, 2**31 - 1  # bytes: of a block that is asked of the kernel alone; of what is kept free


def keep_freed_memory() -> bool:
    """From now on this process keeps up to 2 GiB that it frees instead of handing it back to the kernel.

    A step on a CPU frees at its end nearly all that it took, and the next one takes it again: handed back in between,
    each page is mapped and filled with zeros anew, which was 4 to 12% of a step's CPU time for the demo's models.
    Returns whether the C library is one that can be told (glibc).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(MMAP_THRESHOLD, BLOCK)) and bool(mallopt(TRIM_THRESHOLD, KEPT))
