"""Rows per CPU-second of reading lists of URLs in CSV.

    python -m benchmarks.csv_reading [ROWS]

Ours is what listing does with the file up to Arrow tables: `read_csv`, which decodes, splits and checks every line.
Beside it the same reader with each line by itself, which is how lines with quotation marks are read; Python's csv
module; and pyarrow's reader, which does not keep what this one keeps (stray marks, lines inside a cell, Windows-1252,
line numbers). The sides are interleaved in one process; medians of `TURNS`. Lists are without a quotation mark, with
one in a hundred captions quoted, and with all captions quoted.
"""

from __future__ import annotations

import csv
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.csv

from benchmarks.result import make_claim, write_result
from dataprep.listing.csv_records import RecordReader
from dataprep.listing.csv_tables import read_csv
from dataprep.listing.read_options import ReadOptions

ROWS, TURNS = 300_000, 5
KINDS = {"no quotation mark": 0, "one caption in 100 quoted": 100, "every caption quoted": 1}


def write_list(path: Path, rows: int, every: int) -> None:
    """Writes a list of ``rows`` URLs and captions; each ``every``-th caption holds a comma, and is quoted."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("url,caption\n")
        for row in range(rows):
            caption = f"a photograph of the {row % 97}th red house beside lake number {row}"
            quoted = f'"{caption}, at night"' if every and row % every == 0 else caption
            file.write(f"https://images.example.com/{row % 211}/{row:09d}.jpg,{quoted}\n")


def read_ours(path: Path) -> int:
    """Returns the number of rows that `read_csv` yields."""
    return sum(batch.table.num_rows for batch in read_csv(str(path), ".csv", ReadOptions()))


def read_each_line(path: Path) -> int:
    """As `read_ours`, each line by itself."""
    with mock.patch.object(RecordReader, "_has_odd", lambda *_: True):
        return read_ours(path)


def read_module(path: Path) -> int:
    """Returns the number of rows of Python's csv module, as an Arrow table."""
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        names = next(reader)
        columns = zip(*reader, strict=True)
        table = pa.table({name: pa.array(column) for name, column in zip(names, columns, strict=True)})
    return int(table.num_rows)


def read_pyarrow(path: Path) -> int:
    """Returns the number of rows of pyarrow's reader, in one thread."""
    options = pyarrow.csv.ReadOptions(use_threads=False)
    return int(pyarrow.csv.read_csv(path, read_options=options).num_rows)


SIDES: dict[str, Callable[[Path], int]] = {
    "ours": read_ours,
    "ours, each line by itself": read_each_line,
    "csv module": read_module,
    "pyarrow.csv": read_pyarrow,
}


def measure(path: Path, rows: int) -> dict[str, float]:
    """Returns thousands of rows per CPU-second of each side."""
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(TURNS):
        for name, read in SIDES.items():
            began = time.process_time()
            assert read(path) == rows, name
            seconds[name].append(time.process_time() - began)
    return {name: round(rows / statistics.median(taken) / 1e3) for name, taken in seconds.items()}


def main() -> None:
    """Measures and writes the result."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, every in KINDS.items():
            path = Path(folder) / "list.csv"
            write_list(path, rows, every)
            table.append({"list": kind, "rows": rows} | measure(path, rows))
            print(table[-1])
    if rows == ROWS:
        ratio = table[0]["ours"] / table[0]["ours, each line by itself"]
        claims = [make_claim("without quotation marks, rows per CPU-second over each line by itself", ratio, "x", 4)]
        write_result("csv_reading", table, claims, ("pyarrow",), unit="thousand rows per CPU-second")


if __name__ == "__main__":
    main()
