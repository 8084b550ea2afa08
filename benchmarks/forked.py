"""Runs a pass of a benchmark in a forked process, which shares this one's imports; measures CPU time and memory."""

from __future__ import annotations

import multiprocessing
import resource
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_forked(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what ``function`` returns in a forked process; raises RuntimeError if it raises.

    This process must not have started threads.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        try:
            sender.send((None, function(*arguments)))
        except BaseException:
            sender.send((traceback.format_exc(), None))

    process = context.Process(target=work)
    process.start()
    sender.close()
    error, value = receiver.recv()
    process.join()
    if error:
        raise RuntimeError(f"{arguments}: {error}")
    return value


def measure_cpu_seconds() -> float:
    """Returns the CPU-seconds of this process and of the children that it has waited for."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def measure_peak_mb() -> float:
    """Returns the peak resident memory of this process since it was forked, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
