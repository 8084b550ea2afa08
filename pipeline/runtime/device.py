"""The device of a worker's model."""

from __future__ import annotations


def worker_device() -> str:
    """Returns "cuda" if Ray assigned a GPU to this worker (it hides all others), else "cpu"."""
    from dataprep.io.device_settings import pick_device

    return pick_device("auto")


def count_decode_threads() -> int:
    """Returns the threads that decode for this worker's model: one for each CPU that Ray assigned to it, at least 1."""
    import ray

    if not ray.is_initialized():
        return 1
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
