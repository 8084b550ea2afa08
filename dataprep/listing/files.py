"""The files that `listing.path` names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dataprep.io import storage
from dataprep.io.errors import UserError


def find_matching_files(path: str, is_wanted: Callable[[str], bool], extensions: Sequence[str]) -> list[str]:
    """Returns the files of a glob, the wanted files of a folder, or the one file; sorted.

    Raises UserError, naming ``extensions``, if there is none.
    """
    fs, inner = storage.filesystem(path)
    prefix = path[: len(path) - len(inner)] if path.endswith(inner) else ""
    if "*" in path or "?" in path:
        files = sorted(str(name) for name in fs.glob(inner))
        if not files:
            raise UserError(f"listing.path {path}: no file matches; check the pattern")
        return [prefix + name if prefix and not name.startswith(prefix) else name for name in files]
    if fs.isdir(inner):
        files = [storage.join(path, name) for name in storage.list_files(path) if is_wanted(name)]
        if not files:
            raise UserError(f"listing.path {path}: the folder holds no {' '.join(extensions)} file")
        return files
    if not fs.exists(inner):
        raise UserError(f"listing.path {path}: no such file; check the path")
    return [path]
