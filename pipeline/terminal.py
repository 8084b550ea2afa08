"""Progress with rate and remaining time: a live bar on a terminal, an occasional line in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

LOG_INTERVAL = 15.0  # seconds between lines where there is no terminal

console = Console(stderr=True, highlight=False, soft_wrap=True)


class ProgressUpdate(Protocol):
    """Reports that ``done`` units of the total are finished, with a short note, and the total if it has changed."""

    def __call__(self, done: int, note: str = "", total: int | None = None) -> None: ...


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[ProgressUpdate]:
    """Shows the progress of ``total`` units of work under ``label`` until the block ends."""
    if console.is_terminal:
        with _show_bar(label, total, unit) as update:
            yield update
    else:
        yield _print_lines(label, total, unit)


class _SharedDisplay:
    """One live display with the bars of all running stages: a terminal has room for only one."""

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.display: Progress | None = None

    def __enter__(self) -> Progress:
        with self.lock:
            if self.display is None:
                self.display = _make_display()
                self.display.start()
            self.users += 1
            return self.display

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users and self.display is not None:
                self.display.stop()
                self.display = None


def _make_display() -> Progress:
    from rich.progress import (  # a tenth of a CPU-second that only long commands need
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<13}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]} {task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
    )


_DISPLAY = _SharedDisplay()


@contextmanager
def _show_bar(label: str, total: int, unit: str) -> Iterator[ProgressUpdate]:
    with _DISPLAY as display:
        task = display.add_task(label, total=total, unit=unit, rate="", note="")
        measure_rate = _make_rate_meter()
        try:
            yield lambda done, note="", total=None: display.update(
                task, completed=done, rate=measure_rate(done), note=note, total=total
            )
        finally:
            display.remove_task(task)


def _print_lines(label: str, total: int, unit: str) -> ProgressUpdate:
    measure_rate, last_shown, latest = _make_rate_meter(), time.monotonic(), total

    def update(done: int, note: str = "", total: int | None = None) -> None:
        nonlocal last_shown, latest
        latest = latest if total is None else total
        if time.monotonic() - last_shown >= LOG_INTERVAL:
            last_shown = time.monotonic()
            text = f"  {label}: {done}/{latest} {unit} {measure_rate(done, latest)} {note}"
            print(text.rstrip(), file=sys.stderr, flush=True)

    return update


def _make_rate_meter() -> Callable[..., str]:
    """Returns a function of the units done: units per second since its first call and, of a total, the time left.

    Units that were done before the first call, by the run that is resumed, do not count.
    """
    first: tuple[float, int] | None = None

    def measure_rate(done: int, total: int | None = None) -> str:
        nonlocal first
        first = first or (time.monotonic(), done)
        seconds, units = time.monotonic() - first[0], done - first[1]
        if seconds <= 0.5 or units <= 0:
            return ""
        left = "" if total is None else f", {timedelta(seconds=round((total - done) * seconds / units))} left"
        return f"{units / seconds:.1f}/s{left}"

    return measure_rate
