"""What a source held and what became of it: the counts of a listing, and what was left out by name.

Every record of a source becomes a row: a sample of a tar, an image of a folder, a record of a table, and also what is
incomplete, which carries a reason. What is no record (a hidden file, a film between the images) is left out, counted
and named here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

NAMED = 20  # names kept of each kind; all are in the listing's left_out.jsonl

LEFT_OUT = {
    "hidden": "files with hidden or system names, not read; `listing.hidden_files: true` takes them",
    "other_files": "files that are neither an image nor a caption nor a list",
    "unreadable": "files and folders that cannot be read and are no images",
    "other_captions": "caption files of an image that has another caption",
    "other_images": "images of a tar's sample that has another image; `listing.image_member` says which to take",
    "links": "members of a tar that are links or devices, which hold no bytes",
    "columns": "columns that hold bytes inside other values",
}
NOTED = {
    "windows_1252": "lines and caption files that are not UTF-8 and were read as Windows-1252",
    "stray_quotes": "lines with a quotation mark that opens a cell and is never closed: it was read as text",
    "several_captions": "rows with more than one caption: the first is `caption`, the others `caption_2` and so on",
    "blank_lines": "lines without text",
    "lines_in_cells": "lines that go on in a quoted cell: records are fewer than lines by so many",
    "joined_samples": "samples of a tar whose files do not follow each other, put together",
}


@dataclass
class Account:
    """Counts over a whole source; ``log`` gets every name that is left out or noted.

    ``records`` is counted where the source is read, apart from the rows made of it, so that the two can be compared.
    """

    records: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)
    log: Callable[[str, str], None] | None = None

    def name(self, kind: str, name: str) -> None:
        """Counts one more of ``kind``, a key of `LEFT_OUT` or `NOTED`, by its name."""
        assert kind in LEFT_OUT or kind in NOTED, kind
        self.counts[kind] += 1
        names = self.named.setdefault(kind, [])
        if len(names) < NAMED:
            names.append(name)
        if self.log is not None:
            self.log(kind, name)

    def count(self, kind: str, more: int = 1) -> None:
        """Counts ``more`` of ``kind``, without names."""
        assert kind in NOTED, kind
        if more:
            self.counts[kind] += more
