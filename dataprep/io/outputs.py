"""Checks where a command is going to write, before it works for minutes."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from dataprep.io.errors import UserError


def check_output_file(path: Path, option: str = "--out") -> None:
    """Raises UserError, naming ``option``, if no file can be written at ``path``, a file there replaced.

    Creates and removes a file beside it, and creates no folder.
    """
    _check_local(path, option)
    if os.path.isdir(path):  # `Path.is_dir` raises for a name that is too long
        raise UserError(f"{option} {path}: is a folder; give the name of a file")
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe, /dev/stdout
        return
    _check_parent(path, option)


def check_output_folder(path: Path, option: str = "--out") -> None:
    """Raises UserError, naming ``option``, if no file can be written in the folder ``path``, there or not yet there.

    Creates and removes a file there, or beside it, and creates no folder.
    """
    _check_local(path, option)
    if os.path.isdir(path):
        _probe(path, option, path, "probe")
    elif os.path.lexists(path):
        raise UserError(f"{option} {path}: is a file; give the name of a folder")
    else:
        _check_parent(path, option)


def _check_local(path: Path, option: str) -> None:
    if re.match(r"[a-z0-9]{2,}:/", str(path)) and not os.path.exists(path.parent):  # pathlib makes one slash of two
        raise UserError(f"{option} {path}: is a URL; give a path on this machine, and copy the result")


def _check_parent(path: Path, option: str) -> None:
    """Raises UserError unless the nearest folder above ``path`` that exists can be written, and takes all the names."""
    folder, names = path.parent, [path.name]
    while not os.path.lexists(folder):
        names.append(folder.name)
        folder = folder.parent
    if not os.path.isdir(folder):
        raise UserError(f"{option} {path}: {folder} is not a folder; give another place")
    _probe(path, option, folder, max(names, key=lambda name: len(os.fsencode(name))))


def _probe(path: Path, option: str, folder: Path, name: str) -> None:
    """Writes a file in ``folder`` with a name longer than ``name``, as temporary ones beside it have; removes it."""
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{name}.", suffix=".tmp", dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{option} {path}: cannot be written ({reason}); give another place") from error
