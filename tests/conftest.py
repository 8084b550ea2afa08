"""Settings of every test process, and of the processes that it starts."""

from __future__ import annotations

import os

# `make test` runs a process per core. A second thread in each does no more work on tensors of this size: it spins, and
# tests that sample or score took three times the CPU-seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")
