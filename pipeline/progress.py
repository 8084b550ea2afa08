"""Progress with rate and time left: a live bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_EVERY = 15.0  # seconds between lines where there is no terminal

console = Console(stderr=True, highlight=False, soft_wrap=True)


class Update(Protocol):
    """Tells how far the work is: ``done`` units of the total, with a short note."""

    def __call__(self, done: int, note: str = "") -> None: ...


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Update]:
    """Shows work of ``total`` units under ``label`` until the block ends."""
    if console.is_terminal:
        with _bar(label, total, unit) as update:
            yield update
    else:
        yield _lines(label, total, unit)


class _Bars:
    """One live display for the bars of all stages that run now; a terminal has room for no second one."""

    def __init__(self) -> None:
        self.lock, self.users, self.display = threading.Lock(), 0, _display()

    def __enter__(self) -> Progress:
        with self.lock:
            if not self.users:
                self.display = _display()
                self.display.start()
            self.users += 1
            return self.display

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                self.display.stop()


def _display() -> Progress:
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


_BARS = _Bars()


@contextmanager
def _bar(label: str, total: int, unit: str) -> Iterator[Update]:
    with _BARS as bars:
        task = bars.add_task(label, total=total, unit=unit, rate="", note="")
        rate = _rate()
        try:
            yield lambda done, note="": bars.update(task, completed=done, rate=rate(done), note=note)
        finally:
            bars.remove_task(task)


def _lines(label: str, total: int, unit: str) -> Update:
    rate, shown = _rate(total), [time.monotonic()]

    def update(done: int, note: str = "") -> None:
        if time.monotonic() - shown[0] >= LOG_EVERY:
            shown[0] = time.monotonic()
            print(f"  {label}: {done}/{total} {unit} {rate(done)} {note}".rstrip(), file=sys.stderr, flush=True)

    return update


def _rate(total: int | None = None) -> Callable[[int], str]:
    """Units a second since the first call, what was done before (a resume) left out; of a ``total``, the time left."""
    first: list[tuple[float, int]] = []

    def rate(done: int) -> str:
        if not first:
            first.append((time.monotonic(), done))
        seconds, units = time.monotonic() - first[0][0], done - first[0][1]
        if seconds <= 0.5 or units <= 0:
            return ""
        left = "" if total is None else f", {timedelta(seconds=round((total - done) * seconds / units))} left"
        return f"{units / seconds:.1f}/s{left}"

    return rate
