"""Time, memory and GPU utilisation of updates."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PARTS = ("data", "forward", "backward", "step")
# Dense peak in TFLOP/s at bf16 with float32 sums, without sparsity, by words of the device's name; the longest counts
# (NVIDIA's data sheets). V100 and T4 have no bf16: their fp16.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
}
SHARES = ("MIG", "Laptop", "Max-Q")  # words of devices that have less than the name says


class Stopwatch:
    """Seconds in each part of an update, summed over a log window.

    On a GPU, events in its stream time the parts and are read once per window, which avoids synchronisation; "data" is
    the host's wait for a batch there too.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times the body of the context."""
        if self.cuda and name != "data":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self.events.append((name, start, end))
            return
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began

    def collect_ms(self, updates: int) -> dict[str, float]:
        """Returns milliseconds per update in each part since the last call, as ``<part>_ms``."""
        if self.events:
            torch.cuda.synchronize()
            for name, start, end in self.events:
                self.seconds[name] += start.elapsed_time(end) / 1000
            self.events.clear()
        row = {f"{name}_ms": round(1000 * total / max(1, updates), 3) for name, total in self.seconds.items()}
        self.seconds = dict.fromkeys(PARTS, 0.0)
        return row


def peak_memory_mb(device: torch.device) -> float:
    """Returns the peak memory so far: of the GPU, or on a CPU of the process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)  # Linux counts it in KiB


def peak_tflops(device: torch.device, given: float | None) -> float | None:
    """Returns the GPU's dense peak: as given, else by its name; None for a CPU or an unknown GPU."""
    if given is not None or device.type != "cuda":
        return given
    name = torch.cuda.get_device_name(device)
    found = [words for words in PEAK_TFLOPS if re.search(rf"\b{re.escape(words)}\b", name)]
    return PEAK_TFLOPS[max(found, key=len)] if found and not any(word in name for word in SHARES) else None
