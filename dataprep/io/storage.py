"""Files on any fsspec URL (local path, s3://, gs://, hf://, memory://): atomic whole-file writes, hashes, listing.

A "path" is a string; local paths are plain, without ``file://``. A local write goes to a temporary name and is renamed;
on object stores a plain put is already atomic.
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

from dataprep.io.errors import UserError
from dataprep.io.plain_text import split_lines

CHUNK = 1 << 20
OBJECT_STORES = ("s3://", "s3a://", "gs://", "gcs://")
HUB = "hf://"  # of Hugging Face; what is behind HF_ENDPOINT, with the token in HF_TOKEN
# S3 client: retries throttled and broken requests with back-off for some minutes; gives up dead connections early.
# ("adaptive" slows all requests down after one failure: a minute of trouble costs many.)
S3_CLIENT = {"retries": {"max_attempts": 10, "mode": "standard"}, "connect_timeout": 10, "read_timeout": 60}
LAG = 120.0  # seconds that a store's listing may lag behind its writes
# Of a repository without a revision: it, its kind, and the path in it.
HUB_PATH = re.compile(r"(hf://(datasets/|spaces/|(?!datasets/|spaces/|buckets/))[^/@]+/[^/@]+)((?:/.*)?)")
MEMBER = re.compile(r"(.+\.tar)#(\d+)-(\d+)")


def is_local(path: str) -> bool:
    """Returns whether ``path`` is local, that is, has no URL scheme."""
    return "://" not in path


def absolute(path: str) -> str:
    """Makes a local ``path`` absolute, since workers have other working directories."""
    return str(Path(os.path.expanduser(path)).absolute()) if is_local(path) else path


def join(base: str, *parts: str) -> str:
    """Joins path parts with '/', for any scheme of ``base``."""
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def filesystem(path: str) -> tuple[Any, str]:
    """Returns the fsspec filesystem of ``path`` and the path in that filesystem's spelling.

    Listings of object stores are not cached: a cached one would miss what other processes wrote. S3 requests are
    retried. Raises UserError if the library of the scheme is missing.
    """
    options: dict[str, Any] = {"use_listings_cache": False} if path.startswith(OBJECT_STORES) else {}
    if path.startswith(("s3://", "s3a://")):
        options["config_kwargs"] = S3_CLIENT
    try:
        return fsspec.core.url_to_fs(path, **options)
    except (ImportError, ValueError) as error:
        hint = "pip install 'imagen-ray[gcs]'" if path.startswith(("gs://", "gcs://")) else "check the URL's scheme"
        raise UserError(f"{path}: cannot be reached ({error}); {hint}") from error


def pin_revision(path: str) -> str:
    """Returns a path on Hugging Face's hub with the commit that it stands for now, any other path as it is.

    What is read under it later is then what was read first. Raises OSError where the hub does not answer.
    """
    match = HUB_PATH.fullmatch(path)
    if match is None:
        return path
    from huggingface_hub import HfApi

    kind = match[2].removesuffix("s/") or "model"
    name = match[1].removeprefix(HUB + match[2])
    found = HfApi(endpoint=filesystem(path)[0].endpoint).repo_info(name, repo_type=kind)
    return f"{match[1]}@{found.sha}{match[3]}"


def exists(path: str) -> bool:
    """Returns whether there is a file or folder at ``path``."""
    fs, inner = filesystem(path)
    return bool(fs.exists(inner))


def read_bytes(path: str) -> bytes:
    """Reads the file at ``path``; of ``file.tar#start-end`` (see `member_path`) only those bytes."""
    if match := MEMBER.fullmatch(path):
        fs, inner = filesystem(match[1])
        return bytes(fs.cat_file(inner, start=int(match[2]), end=int(match[3]))) if match[2] != match[3] else b""
    fs, inner = filesystem(path)
    return bytes(fs.cat_file(inner, **_single_request(path)))


def _single_request(path: str) -> dict[str, Any]:
    """Returns options to read an object in one request: several could mix two versions of a replaced object."""
    return {"max_concurrency": 1} if path.startswith(("s3://", "s3a://")) else {}


def read_or_none(path: str) -> bytes | None:
    """Reads the file at ``path``; None if there is none. Needs no listing."""
    try:
        return read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_many(paths: Sequence[str]) -> list[bytes]:
    """Reads files of one filesystem, in order; from an object store many at a time."""
    if not paths:
        return []
    fs, _ = filesystem(paths[0])
    inner = [filesystem(path)[1] for path in paths]
    whole: list[None] = [None] * len(inner)  # no range; `cat` would read brackets in a path as a pattern
    return [bytes(data) for data in fs.cat_ranges(inner, whole, whole, on_error="raise", **_single_request(paths[0]))]


def list_settled(folder: str) -> list[str]:
    """Returns `list_files` of everything written before the call, even if the store's listing lags behind.

    Writes a probe file and lists the folder until it appears. Raises OSError if it does not within `LAG` seconds.
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
    """Returns the path of the bytes ``start`` to ``end`` of an uncompressed tar, such as one member."""
    return f"{tar}#{start}-{end}"


def read_json(path: str) -> Any:
    """Reads the JSON value at ``path``."""
    return json.loads(read_bytes(path))


def read_json_lines(path: str) -> list[Any]:
    """Reads the values of a JSON-lines log; none if there is no file. Skips incomplete lines, which a kill leaves."""
    values = []
    for line in split_lines((read_or_none(path) or b"").decode(errors="replace")):
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return values


def write_bytes(path: str, data: bytes) -> None:
    """Writes ``data`` to ``path`` atomically: a reader sees the old or the new content, never a part."""
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
    """Writes ``data`` to ``path`` unless there is a file; returns whether it was written.

    Of several writers, on any machines, exactly one succeeds. Needs a store with conditional writes, such as S3 or GCS.
    """
    fs, inner = filesystem(path)
    try:
        fs.pipe_file(inner, data, mode="create")
    except Exception:
        # Each store raises another error; and a request retried after a lost response finds its own data.
        if (present := read_or_none(path)) is None:
            raise
        return present == data
    return True


def write_json(path: str, value: Any) -> None:
    """Writes ``value`` atomically as indented JSON; keys keep their order."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def publish(local: str | Path, path: str) -> None:
    """Moves the local file ``local`` to ``path`` atomically."""
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
    """Yields a local file with the content of ``path``: itself if local, else a temporary download."""
    if is_local(path):
        yield path
        return
    fs, inner = filesystem(path)
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as folder:
        local = os.path.join(folder, os.path.basename(inner))
        fs.get_file(inner, local)
        yield local


def list_files(folder: str) -> list[str]:
    """Returns all files below ``folder``, relative to it, sorted, without temporary files of unfinished writes."""
    fs, inner = filesystem(folder)
    root = inner.rstrip("/") + "/"
    names = (str(name)[len(root) :] for name in fs.find(inner))
    return sorted(name for name in names if not name.endswith(".tmp"))


def list_folders(folder: str) -> list[str]:
    """Returns the names of the folders directly in ``folder``, sorted; none if it does not exist."""
    fs, inner = filesystem(folder)
    if not fs.exists(inner):
        return []
    entries = fs.ls(inner, detail=True)
    return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory")


def size(path: str) -> int | None:
    """Returns the size in bytes of the file, or of the tar's byte range, at ``path``; None if there is none."""
    if match := MEMBER.fullmatch(path):
        return int(match[3]) - int(match[2])
    fs, inner = filesystem(path)
    try:
        return int(fs.info(inner)["size"])
    except FileNotFoundError:
        return None


def identity(path: str) -> dict[str, Any]:
    """Returns what shows, without reading the file, that it may have changed: size, modified, tag.

    "modified" is in seconds since 1970, "tag" the ETag, the hash of a git blob, or the inode. Raises FileNotFoundError
    if there is no file.
    """
    fs, inner = filesystem(path)
    info = fs.info(inner)
    times = (info[name] for name in ("mtime", "LastModified", "last_modified", "updated", "created") if name in info)
    found = next(times, 0.0)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    modified = found.timestamp() if isinstance(found, datetime) else float(found)
    tag = info.get("ETag") or info.get("blob_id") or info.get("ino") or ""
    return {"size": int(info["size"]), "modified": modified, "tag": str(tag)}


def duplicate(source: str, target: str) -> None:
    """Copies ``source`` to ``target`` without reading it: by a hard link, or by the store.

    Files are never modified in place, so a link is as good as a copy. On disks without links the file is copied.
    """
    if is_local(source) and is_local(target):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(target).with_name(f".{Path(target).name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copy2(source, temporary)
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # a rename does nothing if both are the same file
    else:
        fs, inner = filesystem(source)
        fs.cp_file(inner, filesystem(target)[1])


def sha256_file(path: str) -> tuple[str, int]:
    """Returns the sha256 in hex and the size in bytes of the file at ``path``.

    Of a large file on Hugging Face's hub the hub knows it.
    """
    fs, inner = filesystem(path)
    if path.startswith(HUB) and (known := fs.info(inner).get("lfs")):
        return str(known["sha256"]), int(known["size"])
    digest, size = hashlib.sha256(), 0
    with fs.open(inner, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def remove(path: str) -> None:
    """Deletes the file or folder at ``path`` if there is one."""
    fs, inner = filesystem(path)
    if fs.exists(inner):
        fs.rm(inner, recursive=True)


@cache
def local_folder(path: str) -> str:
    """Returns a local folder with the content of ``path``: itself if local, else a copy for this process.

    A name without URL scheme that is no folder, such as a hub name, is returned unchanged.
    """
    if is_local(path):
        return path
    fs, inner = filesystem(path)
    folder = tempfile.mkdtemp(prefix="imagen-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    fs.get(inner.rstrip("/") + "/", folder, recursive=True)
    return folder
