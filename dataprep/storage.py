"""Files on any fsspec URL (local path, s3://, gs://, memory://): whole-file atomic writes, hashes, listing.

A "path" is a string; local paths are plain, without ``file://``. On a local disk a write goes to a temporary name
and is renamed; object stores publish an object only when it is whole, so there a plain put is atomic already.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import fsspec

CHUNK = 1 << 20
OBJECT_STORES = ("s3://", "s3a://", "gs://", "gcs://")
# Of the S3 client: who is throttled or cut off asks again, waiting longer each time, for some minutes; a dead
# connection is given up soon. ("adaptive" paces all requests by one that failed: a minute's trouble costs many.)
S3_CLIENT = {"retries": {"max_attempts": 10, "mode": "standard"}, "connect_timeout": 10, "read_timeout": 60}
LAG = 120.0  # seconds that a store's listing may be behind
MEMBER = re.compile(r"(.+\.tar)#(\d+)-(\d+)")


def is_local(path: str) -> bool:
    """Whether ``path`` is on a local disk, that is, has no URL scheme."""
    return "://" not in path


def absolute(path: str) -> str:
    """``path`` as every process understands it: local ones made absolute, since workers have other working folders."""
    return str(Path(os.path.expanduser(path)).absolute()) if is_local(path) else path


def join(base: str, *parts: str) -> str:
    """Joins path parts with '/', whatever the scheme of ``base``."""
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec filesystem that serves ``path`` and the path as that filesystem spells it.

    Object stores are asked anew each time: what another process wrote would be missing from a remembered listing.
    What they refuse for the moment, or break off, is asked again. UserError where the scheme's library is missing.
    """
    options: dict[str, Any] = {"use_listings_cache": False} if path.startswith(OBJECT_STORES) else {}
    if path.startswith(("s3://", "s3a://")):
        options["config_kwargs"] = S3_CLIENT
    try:
        return fsspec.core.url_to_fs(path, **options)
    except (ImportError, ValueError) as error:
        from dataprep.schema import UserError  # not at the top: schema reads its files through this module

        hint = "pip install 'imagen-ray[gcs]'" if path.startswith(("gs://", "gcs://")) else "check the URL's scheme"
        raise UserError(f"{path}: cannot be reached ({error}); {hint}") from error


def exists(path: str) -> bool:
    """Whether a file or folder is at ``path``."""
    fs, inner = filesystem(path)
    return bool(fs.exists(inner))


def read_bytes(path: str) -> bytes:
    """The whole content of ``path``; of ``file.tar#start-end``, as `member_path` spells it, those bytes alone."""
    if match := MEMBER.fullmatch(path):
        fs, inner = filesystem(match[1])
        return bytes(fs.cat_file(inner, start=int(match[2]), end=int(match[3]))) if match[2] != match[3] else b""
    fs, inner = filesystem(path)
    return bytes(fs.cat_file(inner, **_at_once(path)))


def _at_once(path: str) -> dict[str, Any]:
    """Options that read an object in one request: in several, an object that is replaced would come out mixed."""
    return {"max_concurrency": 1} if path.startswith(("s3://", "s3a://")) else {}


def read_or_none(path: str) -> bytes | None:
    """The whole content of ``path``, None where there is no such file; asked by name, so nothing is listed for it."""
    try:
        return read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_many(paths: Sequence[str]) -> list[bytes]:
    """The whole contents of files of one filesystem, in order; from an object store many at a time."""
    if not paths:
        return []
    fs, _ = filesystem(paths[0])
    inner = [filesystem(path)[1] for path in paths]
    whole: list[None] = [None] * len(inner)  # no range: `cat` would take brackets in a path for a pattern
    return [bytes(data) for data in fs.cat_ranges(inner, whole, whole, on_error="raise", **_at_once(paths[0]))]


def list_settled(folder: str) -> list[str]:
    """`list_files` of what was written before the call, also where a store's listing lags behind what is there.

    A file is written, and the folder is listed until that shows. OSError where it does not within `LAG` seconds.
    """
    if is_local(folder):
        return list_files(folder)
    probe = f".listed-{uuid.uuid4().hex[:8]}"
    write_bytes(join(folder, probe), b"")
    until = time.monotonic() + LAG
    while probe not in (names := list_files(folder)):
        if time.monotonic() > until:
            raise OSError(f"{folder}: the store's listing is more than {LAG:.0f} s behind")
        time.sleep(0.5)
    remove(join(folder, probe))
    return [name for name in names if not name.startswith(".listed-")]


def member_path(tar: str, start: int, end: int) -> str:
    """The path of the bytes ``start`` to ``end`` of an uncompressed tar: a member that is read without the others."""
    return f"{tar}#{start}-{end}"


def read_json(path: str) -> Any:
    """The JSON value stored at ``path``."""
    return json.loads(read_bytes(path))


def read_json_lines(path: str) -> list[Any]:
    """The values of a JSON-lines log, none where there is no file; a line that a kill tore off is left out."""
    values = []
    for line in (read_or_none(path) or b"").decode(errors="replace").splitlines():
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return values


def write_bytes(path: str, data: bytes) -> None:
    """Writes ``data`` to ``path`` atomically: a reader sees the old content or the new, never a part."""
    if is_local(path):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    else:
        fs, inner = filesystem(path)
        fs.pipe_file(inner, data)


def create(path: str, data: bytes) -> bool:
    """Writes ``data`` to ``path`` unless a file is there; whether it was this that was written.

    Of several writers, on whatever machines, one succeeds. That needs a store with conditional writes: S3 and its
    likes, Google's.
    """
    fs, inner = filesystem(path)
    try:
        fs.pipe_file(inner, data, mode="create")
    except Exception:
        # Every store says it in its own way; and a request sent again, its answer lost, meets what it wrote itself.
        if (there := read_or_none(path)) is None:
            raise
        return there == data
    return True


def write_json(path: str, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically; keys keep their order."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def publish(local: str | Path, path: str) -> None:
    """Moves the local file ``local`` to ``path`` atomically; ``local`` is gone afterwards."""
    if is_local(path):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            shutil.move(str(local), temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    else:
        fs, inner = filesystem(path)
        fs.put_file(str(local), inner)
        Path(local).unlink()


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """A local file with the content of ``path``: itself where it is local, else a temporary download."""
    if is_local(path):
        yield path
        return
    fs, inner = filesystem(path)
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as folder:
        local = os.path.join(folder, os.path.basename(inner))
        fs.get_file(inner, local)
        yield local


def list_files(folder: str) -> list[str]:
    """Every file below ``folder``, relative to it, sorted; temporary files of unfinished writes are left out."""
    fs, inner = filesystem(folder)
    root = inner.rstrip("/") + "/"
    names = (str(name)[len(root) :] for name in fs.find(inner))
    return sorted(name for name in names if not name.endswith(".tmp"))


def list_folders(folder: str) -> list[str]:
    """The names of the folders right below ``folder``, sorted; none where it is not there."""
    fs, inner = filesystem(folder)
    if not fs.exists(inner):
        return []
    entries = fs.ls(inner, detail=True)
    return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory")


def size(path: str) -> int | None:
    """The size in bytes of the file at ``path``, or of the bytes of a tar that it names; None where there is none."""
    if match := MEMBER.fullmatch(path):
        return int(match[3]) - int(match[2])
    fs, inner = filesystem(path)
    try:
        return int(fs.info(inner)["size"])
    except FileNotFoundError:
        return None


def identity(path: str) -> dict[str, Any]:
    """What tells without reading it that the file at ``path`` may have changed: size, time, inode or entity tag.

    "modified" is in seconds since 1970. Raises FileNotFoundError where there is none.
    """
    fs, inner = filesystem(path)
    info = fs.info(inner)
    times = (info[name] for name in ("mtime", "LastModified", "last_modified", "updated", "created") if name in info)
    found = next(times, 0.0)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    modified = found.timestamp() if isinstance(found, datetime) else float(found)
    return {"size": int(info["size"]), "modified": modified, "tag": str(info.get("ETag") or info.get("ino") or "")}


def duplicate(source: str, target: str) -> None:
    """Makes ``target`` the same file as ``source``, without reading it: a hard link, or a copy made by the store.

    Files are never written to in place here, so a link is as good as a copy. Where a disk cannot link it is copied.
    """
    if is_local(source) and is_local(target):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(target).with_name(f".{Path(target).name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copy2(source, temporary)
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # where both were the same file already, a rename does nothing
    else:
        fs, inner = filesystem(source)
        fs.cp_file(inner, filesystem(target)[1])


def sha256_file(path: str) -> tuple[str, int]:
    """The sha256 in hex, and the size in bytes, of the file at ``path``, read in pieces."""
    fs, inner = filesystem(path)
    digest, size = hashlib.sha256(), 0
    with fs.open(inner, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def remove(path: str) -> None:
    """Deletes the file or folder at ``path`` where there is one."""
    fs, inner = filesystem(path)
    if fs.exists(inner):
        fs.rm(inner, recursive=True)


@cache
def local_folder(path: str) -> str:
    """A local folder with the content of that at ``path``: itself where it is local, else a copy for this process.

    What is no folder at all (a hub name, say) is given back as it is.
    """
    if is_local(path):
        return path
    fs, inner = filesystem(path)
    folder = tempfile.mkdtemp(prefix="imagen-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    fs.get(inner.rstrip("/") + "/", folder, recursive=True)
    return folder
