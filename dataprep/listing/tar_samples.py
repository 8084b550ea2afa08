"""The samples of a webdataset tar: which members belong together, and where they are.

A sample's name is its members' path up to the first dot of the file name, and an extension all that follows it in lower
case, as webdataset has it: ``a.jpg``, ``a.seg.png`` and ``a.txt`` are jpg, seg.png and txt of sample ``a``. Members of
a sample follow each other. Where they do not, parts that fit are put together: half a sample is never a whole one.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Collection, Iterator
from typing import NamedTuple

from dataprep.listing.account import Account
from dataprep.listing.files import is_hidden


class Place(NamedTuple):
    """The bytes of a member in the tar."""

    start: int
    end: int


class Sample(NamedTuple):
    """A sample: its name in the tar, and its members by extension."""

    name: str
    members: dict[str, Place]


def split_member(name: str) -> tuple[str, str]:
    """Returns the sample's name and the extension of a member; an empty extension if it has none.

    A dot at the beginning of the file name, which hides it, does not count.
    """
    folder, slash, file = name.rpartition("/")
    hidden = len(file) - len(file.lstrip("."))
    stem, _, extension = file[hidden:].partition(".")
    return folder + slash + file[:hidden] + stem, extension.lower()


def group_members(
    tar: tarfile.TarFile, scattered: Collection[str], where: str, account: Account, hidden_files: bool
) -> Iterator[Sample]:
    """Yields the samples in order; those named in ``scattered`` come last, put together."""
    sample = Sample("", {})
    parts: dict[str, list[Sample]] = {}
    for name, extension, place in _iterate_members(tar, where, account, hidden_files):
        if name != sample.name or extension in sample.members:
            yield from _finish(sample, scattered, parts)
            sample = Sample(name, {})
        sample.members[extension] = place
    yield from _finish(sample, scattered, parts)
    for each in parts.values():
        yield from _join_parts(each, where, account)


def _finish(sample: Sample, scattered: Collection[str], parts: dict[str, list[Sample]]) -> Iterator[Sample]:
    if not sample.members:
        return
    if sample.name in scattered:
        parts.setdefault(sample.name, []).append(sample)
    else:
        yield sample


def _join_parts(parts: list[Sample], where: str, account: Account) -> Iterator[Sample]:
    """Puts parts of one name together as long as no extension occurs twice; what does not fit is another sample."""
    joined = parts[0]
    for part in parts[1:]:
        if joined.members.keys() & part.members.keys():
            yield joined
            joined = part
        else:
            joined = Sample(joined.name, joined.members | part.members)
            account.name("joined_samples", f"{where}: {joined.name}")
    yield joined


def find_scattered(tar: tarfile.TarFile) -> set[str]:
    """Returns the names of samples whose members do not follow each other; keeps a number for each sample."""
    seen: set[int] = set()
    scattered: set[str] = set()
    last = ""
    for name, _, _ in _iterate_members(tar, "", Account(), True):
        if name != last:
            if hash(name) in seen:
                scattered.add(name)
            seen.add(hash(name))
            last = name
    return scattered


def _iterate_members(
    tar: tarfile.TarFile, where: str, account: Account, hidden_files: bool
) -> Iterator[tuple[str, str, Place]]:
    """Yields sample name, extension and place of each member that may belong to a sample."""
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header: a large tar would fill memory
        # Bytes that are not UTF-8 are surrogates here.
        path = os.fsencode(member.name).decode("utf-8", "backslashreplace")
        if member.isdir():
            continue
        if not hidden_files and is_hidden(path):
            account.name("hidden", f"{where}: {path}")
            continue
        if not member.isreg() or member.issparse():
            account.name("links", f"{where}: {path}")
            continue
        name, extension = split_member(path)
        if not extension:
            account.name("other_files", f"{where}: {path}")
            continue
        yield name, extension, Place(member.offset_data, member.offset_data + member.size)
