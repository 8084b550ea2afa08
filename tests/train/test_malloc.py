"""Freed memory is reused instead of requested from the kernel again."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy
from train.malloc import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)

def step():
    # Blocks below and above glibc's own limit of 32 MiB, all freed at the end.
    return sum(float(block[-1]) for block in [numpy.ones(size * 2**17) for size in (8, 8, 8, 48)])

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_memory_is_kept() -> None:
    plain, kept = faults("plain"), faults("keep")
    assert plain > 5 * 1000  # otherwise the next line proves nothing
    assert kept < plain / 20
