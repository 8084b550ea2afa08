"""Copies to and from a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dataprep.io.device_copy import HostCopy, pin, send


def test_a_cpu_needs_no_copies() -> None:
    value = torch.arange(3)
    assert send(value, "cpu") is value and pin(value, "cpu") is value and HostCopy(value).wait() is value


def test_a_gpu_copies_from_pinned_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []
    pinned = torch.arange(3)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda value: value is pinned)

    def pin_memory(value: torch.Tensor) -> torch.Tensor:
        log.append("pin")
        return pinned

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)

    def record(value: torch.Tensor, device: str, **options: Any) -> None:
        log.append((device, value is pinned, options))

    monkeypatch.setattr(torch.Tensor, "to", record)
    send(torch.arange(3), "cuda:1")
    send(pinned, "cuda")
    copy = {"non_blocking": True}
    assert log == ["pin", ("cuda:1", True, copy), ("cuda", True, copy)]
