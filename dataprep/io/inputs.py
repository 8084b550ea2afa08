"""Reads files that a user names."""

from __future__ import annotations

from dataprep.io import storage
from dataprep.io.errors import UserError


def read_input(path: str, name: str, remedy: str) -> bytes:
    """Returns the bytes of the file at ``path``, any fsspec URL.

    Raises UserError with the option or key ``name`` and the ``remedy`` where there is none, and for a folder or a file
    that cannot be read.
    """
    try:
        if storage.exists(path):
            return storage.read_bytes(path)
        reason = "no such file"
    except IsADirectoryError:
        reason = "is a folder"
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
    raise UserError(f"{name}={path}: {reason}; {remedy}")
