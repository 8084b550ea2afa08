"""Tuning of the C library's allocator for CPU training."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
MMAP_BYTES, KEEP_BYTES = 2**30, 2**31 - 1  # smallest block with its own mmap; free memory to keep
USUAL_MMAP_BYTES, USUAL_KEEP_BYTES = 2**25, 2**26  # what glibc arrives at by itself in a process with large blocks


def keep_freed_memory() -> bool:
    """Makes this process keep up to 2 GiB of freed memory instead of returning it to the kernel.

    A training step on a CPU frees nearly all its memory and the next one allocates it again. Returned in between, each
    page has to be mapped and zeroed again: 4 to 12% of a step's CPU time for the demo's models. Returns whether the C
    library supports this (glibc does).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return (
        mallopt is not None and bool(mallopt(MMAP_THRESHOLD, MMAP_BYTES)) and bool(mallopt(TRIM_THRESHOLD, KEEP_BYTES))
    )


def return_freed_memory() -> None:
    """Undoes `keep_freed_memory`, and returns freed memory to the kernel."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
        libc.mallopt(MMAP_THRESHOLD, USUAL_MMAP_BYTES)
        libc.mallopt(TRIM_THRESHOLD, USUAL_KEEP_BYTES)
        libc.malloc_trim(0)
