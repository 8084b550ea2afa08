"""Timing of updates, memory and peak TFLOP/s."""

from __future__ import annotations

import time

import pytest
import torch

from train.timing import PARTS, Stopwatch, peak_memory_mb, peak_tflops


def test_parts_add_up_and_reset() -> None:
    clock = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with clock.part("forward"):
            time.sleep(0.01)
    row = clock.collect_ms(2)
    assert set(row) == {f"{part}_ms" for part in PARTS}
    assert row["forward_ms"] >= 10 and row["data_ms"] == 0
    assert set(clock.collect_ms(1).values()) == {0.0}


def test_memory_is_in_megabytes() -> None:
    assert 50 < peak_memory_mb(torch.device("cpu")) < 1e6


def test_peak_is_found_by_device_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_tflops(torch.device("cpu"), None) is None and peak_tflops(torch.device("cpu"), 5.0) == 5.0
    names = {
        "NVIDIA H200": 989.0,
        "NVIDIA H100 80GB HBM3": 989.0,
        "NVIDIA H100 PCIe": 756.0,
        "NVIDIA H100 NVL": 835.0,
        "NVIDIA A100-SXM4-80GB": 312.0,
        "NVIDIA L4": 121.0,
        "NVIDIA L40": None,
        "NVIDIA L40S": 362.0,
        "Tesla T4": 65.0,
        "Tesla V100-SXM2-16GB": 125.0,
        # A share of a device, another device whose name contains a known one, an unknown one.
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb": None,
        "NVIDIA H100 Laptop GPU": None,
        "NVIDIA T400": None,
        "Other": None,
    }
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_tflops(torch.device("cuda", 0), None) == peak, name
