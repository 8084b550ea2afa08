"""The files that `listing.path` names: one file, a pattern, or what a folder holds, without hidden and system files."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.listing.account import Account

# Beside names that begin with a dot: what Windows, macOS and storage boxes put between other people's files.
SYSTEM_NAMES = frozenset(
    (
        *("@eadir", "@tmp", "#recycle", "#snapshot", "__macosx", "lost+found", "__pycache__", "icon\r"),
        *("$recycle.bin", "thumbs.db", "ehthumbs.db", "desktop.ini", "system volume information"),
        *("network trash folder", "temporary items"),
    )
)
NOT_REGULAR = "not a regular file"  # a problem of `Found`
BRACES = re.compile(r"\{([^{}]*)\}")
MAX_EXPANDED = 1_000_000  # files that a pattern in braces may stand for


class Found(NamedTuple):
    """A file below a folder, relative to it; ``problem`` says why it cannot be read, None if it may be."""

    name: str
    problem: str | None = None


def is_hidden(name: str) -> bool:
    """Returns whether a part of a relative path is a hidden or system name."""
    return any(
        (part.startswith((".", "~$")) and part not in (".", "..")) or part.lower() in SYSTEM_NAMES
        for part in name.split("/")
    )


def list_folder(path: str, account: Account, hidden_files: bool = False) -> list[Found]:
    """Returns all files below a folder, sorted, links followed; hidden ones are left out, counted and named."""
    if storage.is_local(path):
        found = list(_walk(os.path.expanduser(path), account, hidden_files))
    else:
        found = [Found(name) for name in storage.list_files(path)]
    kept = []
    for item in sorted(found):
        if not hidden_files and is_hidden(item.name):
            account.name("hidden", item.name)
        else:
            kept.append(item)
    return kept


def _walk(root: str, account: Account, hidden_files: bool) -> Iterator[Found]:
    """Yields the files of a local folder. A hidden folder is one name; a folder that links to one above it is not
    entered again."""

    def fail(error: OSError) -> None:
        account.name("unreadable", f"{_printable(os.path.relpath(error.filename, root))}: {error.strerror}")

    above: dict[str, frozenset[tuple[int, int]]] = {root: frozenset([_identify(root)])}
    for folder, folders, names in os.walk(root, onerror=fail, followlinks=True):
        relative = "" if folder == root else os.path.relpath(folder, root) + "/"
        seen = above.pop(folder)
        entered = []
        for name in sorted(folders):
            identity = _identify(f"{folder}/{name}")
            if not hidden_files and is_hidden(name):
                account.name("hidden", _printable(f"{relative}{name}/"))
            elif identity in seen:
                account.name("unreadable", _printable(f"{relative}{name}: a link to a folder above it"))
            else:
                above[f"{folder}/{name}"] = seen | {identity}
                entered.append(name)
        folders[:] = entered
        for name in names:
            yield Found(_printable(relative + name), _find_problem(f"{folder}/{name}"))


def _identify(folder: str) -> tuple[int, int]:
    try:
        info = Path(folder).stat()
    except OSError:
        return (-1, -1)
    return (info.st_dev, info.st_ino)


def _printable(name: str) -> str:
    """Returns a file name as text: bytes of it that are not UTF-8 as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _find_problem(path: str) -> str | None:
    """Returns why a local file cannot be read, None if nothing speaks against it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "the file name is not UTF-8; rename it"
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return "a link to a file that is not there"
    except OSError as error:
        return f"not readable: {error.strerror}"
    if not stat.S_ISREG(mode):
        return NOT_REGULAR
    return None if os.access(path, os.R_OK) else "not readable: no permission"


Wanted = Sequence[tuple[Callable[[str], bool], Sequence[str]]]


def find_matching_files(
    path: str, wanted: Wanted, account: Account | None = None, hidden_files: bool = False
) -> list[str]:
    """Returns the files of a pattern, those of a folder, or the one file; sorted.

    A pattern has ``*``, ``?``, ``[a-c]``, or braces: ``{00000..00003}`` or ``{train,val}``. A name that exists as it is
    written is no pattern. Raises UserError if there is no file.

    Args:
        wanted: which files of a folder to take, each with the extensions that an error names: the first that any file
            fits.
    """
    account = account or Account()
    fs, inner = storage.filesystem(path)
    if fs.isdir(inner):
        return _choose_of_folder(path, wanted, account, hidden_files)
    if fs.exists(inner):
        return [path]
    if BRACES.search(path) and (parts := expand_braces(path)) != [path]:
        return list(
            dict.fromkeys(file for part in parts for file in find_matching_files(part, wanted, account, hidden_files))
        )
    if any(sign in path for sign in "*?["):
        return _expand_pattern(path, account, hidden_files)
    raise UserError(f"listing.path {path}: no such file; check the path")


def _choose_of_folder(path: str, wanted: Wanted, account: Account, hidden_files: bool) -> list[str]:
    found = list_folder(path, account, hidden_files)
    chosen = next((names for fits, _ in wanted if (names := [item for item in found if fits(item.name)])), [])
    if not chosen:
        raise UserError(f"listing.path {path}: the folder holds no {' '.join(wanted[0][1])} file")
    if broken := next((item for item in chosen if item.problem), None):
        raise UserError(f"listing.path {storage.join(path, broken.name)}: {broken.problem}; repair or remove it")
    for item in sorted(set(found) - set(chosen)):
        account.name("other_files", item.name)
    return [storage.join(path, item.name) for item in chosen]


def _expand_pattern(path: str, account: Account, hidden_files: bool) -> list[str]:
    fs, inner = storage.filesystem(path)
    prefix = path[: len(path) - len(inner)] if path.endswith(inner) else ""
    # Signs before the first star may belong to the name: data[1]/*.csv.
    literal = inner.replace("[", "[[]")
    found = [str(name) for pattern in dict.fromkeys((inner, literal)) for name in fs.glob(pattern)]
    fixed = re.split(r"[*?\[]", inner, maxsplit=1)[0].rpartition("/")[0]
    files = []
    for name in sorted(set(found)):
        below = name[len(fixed) :].lstrip("/") if name.startswith(fixed) else name
        if not fs.isfile(name):
            continue
        if not hidden_files and is_hidden(below) and not is_hidden(inner[len(fixed) :].lstrip("/")):
            account.name("hidden", below)
        else:
            files.append(prefix + name if prefix and not name.startswith(prefix) else name)
    if not files:
        raise UserError(f"listing.path {path}: no file matches; check the pattern")
    return files


def expand_braces(path: str) -> list[str]:
    """Returns the paths that a pattern in braces stands for, as a shell expands it.

    Raises UserError for more than `MAX_EXPANDED`.
    """
    match = BRACES.search(path)
    if match is None:
        return [path]
    inside = match[1]
    if span := re.fullmatch(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?", inside):
        first, last = int(span[1]), int(span[2])
        if abs(last - first) >= MAX_EXPANDED:
            raise UserError(f"listing.path {path}: stands for more than {MAX_EXPANDED:,} files; name fewer")
        width = max(len(span[1]), len(span[2])) if span[1].startswith("0") or span[2].startswith("0") else 0
        step = max(1, int(span[3] or 1))
        numbers = range(first, last + 1, step) if last >= first else range(first, last - 1, -step)
        parts = [f"{number:0{width}d}" for number in numbers]
    elif "," in inside:
        parts = inside.split(",")
    else:  # a name with braces in it
        rest = expand_braces(path[match.end() :])
        return [path[: match.end()] + tail for tail in rest]
    return [done for part in parts for done in expand_braces(path[: match.start()] + part + path[match.end() :])]
