"""A store at ``counted:///local/path`` that counts the requests of this process, as an object store would see them.

It keeps its objects in local files, so several processes share it; `storage` takes it for remote.
"""

from __future__ import annotations

import io
import threading
from collections import Counter
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

REQUESTS: Counter[str] = Counter()  # by kind: head, list, get, put, delete
READ: Counter[str] = Counter()  # bytes by local path
_LOCK = threading.Lock()


def count(kind: str, path: str = "", size: int = 0) -> None:
    """Counts a request, and the bytes that it read."""
    with _LOCK:
        REQUESTS[kind] += 1
        READ[path] += size


def reset() -> None:
    """Sets the counts to zero."""
    REQUESTS.clear()
    READ.clear()


class CountedFile(io.BytesIO):
    """An open object: each read is a request."""

    def __init__(self, path: str, data: bytes) -> None:
        super().__init__(data)
        self.path = path

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        count("get", self.path, len(data))
        return data


class CountedFileSystem(LocalFileSystem):
    """Local files, with counts."""

    protocol = "counted"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        return super()._strip_protocol(str(path).removeprefix("counted://"))

    def info(self, path: str, **options: Any) -> Any:
        count("head")
        return super().info(path, **options)

    def exists(self, path: str, **options: Any) -> bool:
        count("head")
        return bool(super().exists(path, **options))

    def find(self, path: str, *arguments: Any, **options: Any) -> Any:
        count("list")
        before = REQUESTS["head"], REQUESTS["list"]
        found = super().find(path, *arguments, **options)
        REQUESTS["head"], REQUESTS["list"] = before  # of the local implementation
        return found

    def ukey(self, path: str) -> str:
        count("head")
        return super().ukey(path)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        with open(self._strip_protocol(path), "rb") as file:
            file.seek(start or 0)
            data = file.read(-1 if end is None else end - (start or 0))
        count("get", self._strip_protocol(path), len(data))
        return data

    def get_file(self, path: str, local: str, **options: Any) -> None:
        with open(local, "wb") as file:
            file.write(self.cat_file(path))

    def _open(self, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode, *arguments, **options)
        count("head")
        with open(path, "rb") as file:
            return CountedFile(path, file.read())

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        count("put")
        self.makedirs(self._parent(path), exist_ok=True)
        with open(self._strip_protocol(path), "xb" if mode == "create" else "wb") as file:
            file.write(value)

    def put_file(self, local: str, path: str, *_: Any, **__: Any) -> None:
        with open(local, "rb") as file:
            self.pipe_file(path, file.read())

    def rm(self, path: Any, *arguments: Any, **options: Any) -> None:
        count("delete")
        super().rm(path, *arguments, **options)


fsspec.register_implementation("counted", CountedFileSystem, clobber=True)
