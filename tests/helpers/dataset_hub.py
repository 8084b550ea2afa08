"""A hub of datasets on loopback: what huggingface_hub's filesystem asks of one to list and to read files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers.hub import TOKEN

LARGE = 2000  # bytes from which a file is in large file storage, whose sha256 the hub knows


@dataclass
class DatasetHub:
    """Files by dataset; ``gated`` datasets are read with `TOKEN` alone. ``read`` has the path of each file read."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    read: list[str] = field(default_factory=list)

    def commit(self, name: str) -> str:
        """Returns the commit of a dataset: a function of its files."""
        return hashlib.sha1(repr(sorted(self.files[name].items())).encode()).hexdigest()


@contextmanager
def serve_dataset_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[DatasetHub]:
    """Serves a hub that ``hf://`` leads to in this process, and in processes that it starts."""
    from huggingface_hub import HfFileSystem, constants

    hub = DatasetHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    HfFileSystem.clear_instance_cache()
    try:
        yield hub
    finally:
        HfFileSystem.clear_instance_cache()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: DatasetHub, *request: Any) -> None:
        self.hub = hub
        super().__init__(*request)  # answers it

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        name, action, revision, _ = self._split("/api/datasets/")
        if action == "paths-info" and self._is_known(name, revision):
            found = [item for path in body["paths"] for item in _list_tree(self.hub.files[name], path, alone=True)]
            return self._send_json(200, found)
        return self._send_json(404, {"error": self.path})

    def do_GET(self) -> None:
        if self.path.startswith("/api/datasets/"):
            name, action, revision, path = self._split("/api/datasets/")
            if not self._is_known(name, revision):
                return self._send_error(404, "RepoNotFound" if name not in self.hub.files else "RevisionNotFound")
            if action == "tree":
                recursive = "recursive=true" in self.path.lower()
                return self._send_json(200, _list_tree(self.hub.files[name], path, recursive=recursive))
            return self._send_json(200, {"id": name, "sha": self.hub.commit(name), "siblings": [], "tags": []})
        name, _, revision, path = self._split("/datasets/")
        if not self._is_known(name, revision) or path not in self.hub.files[name]:
            return self._send_error(404, "EntryNotFound")
        if name in self.hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send_error(401, "GatedRepo")
        self.hub.read.append(path)
        return self._send_file(self.hub.files[name][path])

    def _split(self, prefix: str) -> tuple[str, str, str, str]:
        """Returns dataset, action, revision and path of a request."""
        parts = unquote(urlsplit(self.path).path).removeprefix(prefix).split("/")
        parts += [""] * (4 - len(parts))
        return "/".join(parts[:2]), parts[2], parts[3], "/".join(parts[4:])

    def _is_known(self, name: str, revision: str) -> bool:
        return name in self.hub.files and revision in ("", "main", self.hub.commit(name))

    def _send_file(self, data: bytes) -> None:
        span = self.headers.get("Range")
        whole = len(data)
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            data = data[int(first) : int(last) + 1 if last else None]
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{whole}")
        self._finish("application/octet-stream", data)

    def _send_json(self, status: int, value: Any) -> None:
        self.send_response(status)
        self._finish("application/json", json.dumps(value).encode())

    def _send_error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"{code}: {self.path}")
        self._finish("application/json", json.dumps({"error": code}).encode())

    def _finish(self, kind: str, data: bytes) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _list_tree(
    files: dict[str, bytes], path: str, recursive: bool = False, alone: bool = False
) -> list[dict[str, Any]]:
    """Returns the hub's entries below a folder, or of the one path if ``alone``."""
    if alone:
        if path in files:
            return [_describe(path, files[path])]
        return [_describe_folder(path)] if any(name.startswith(path + "/") for name in files) else []
    prefix = f"{path}/" if path else ""
    found: dict[str, dict[str, Any]] = {}
    for name, data in files.items():
        if not name.startswith(prefix):
            continue
        parts = name[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            folder = prefix + "/".join(parts[:depth])
            found[folder] = _describe_folder(folder)
        if recursive or len(parts) == 1:
            found[name] = _describe(name, data)
    return list(found.values())


def _describe_folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}


def _describe(path: str, data: bytes) -> dict[str, Any]:
    known = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if len(data) >= LARGE:
        known["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return known
