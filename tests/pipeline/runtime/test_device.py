"""The device of a worker, and the threads that decode for it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray
import torch

from pipeline.runtime.device import count_decode_threads, worker_device


@pytest.mark.parametrize(("cpus", "threads"), [({"CPU": 6.0, "GPU": 1.0}, 6), ({"CPU": 0.5}, 1), ({}, 1)])
def test_a_worker_decodes_with_the_cpus_that_it_was_given(
    cpus: dict[str, float], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_assigned_resources=lambda: cpus))
    assert count_decode_threads() == threads
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert count_decode_threads() == 1


@pytest.mark.parametrize(("available", "device"), [(True, "cuda"), (False, "cpu")])
def test_a_worker_computes_on_the_gpu_that_it_was_given(
    available: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert worker_device() == device
