"""A pass of a benchmark in a process of its own, forked from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import resource
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function`` returns in a forked process. Threads must not have been started here."""
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


def cpu_seconds() -> float:
    """Of this process and of the children that it has waited for."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def peak_mb() -> float:
    """The most memory that this process has had since it was forked."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
