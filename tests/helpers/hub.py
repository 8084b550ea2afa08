"""A model hub on loopback: what huggingface_hub asks of one to make a repository and to upload files to it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_made_up_for_a_test"


@dataclass
class Hub:
    """What the hub holds: files by repository, and how repositories were made."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    created: dict[str, dict[str, Any]] = field(default_factory=dict)
    owners: set[str] = field(default_factory=lambda: {"me"})
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serves a hub; its `url` is what HF_ENDPOINT names."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _make_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            hub.requests.append(format % args)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._answer(401, {"error": "Invalid credentials"})
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts == ["api", "repos", "create"]:
                return self._create(json.loads(body))
            if parts == ["api", "validate-yaml"]:  # of the model card
                return self._answer(200, {"errors": [], "warnings": []})
            name, action = "/".join(parts[2:4]), parts[4]
            if action == "preupload":
                wanted = [item["path"] for item in json.loads(body)["files"]]
                modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in wanted]
                return self._answer(200, {"files": modes})
            if action == "commit":
                return self._commit(name, body)
            return self._answer(404, {"error": self.path})

        def do_GET(self) -> None:
            name = "/".join(self.path.partition("?")[0].strip("/").split("/")[2:4])
            if name not in hub.files:
                return self._answer(404, {"error": "Repository not found"})
            siblings = [{"rfilename": path} for path in hub.files[name]]
            return self._answer(200, {"id": name, "sha": "0" * 40, "siblings": siblings, "tags": []})

        def _create(self, asked: dict[str, Any]) -> None:
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name.split("/")[0] not in hub.owners:
                return self._answer(403, {"error": "You don't have the rights to create a model under this namespace"})
            if name in hub.created:
                return self._answer(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
            hub.created[name], hub.files[name] = asked, {}
            return self._answer(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})

        def _commit(self, name: str, body: bytes) -> None:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    hub.files[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            page = f"{hub.url}/{name}/commit/{'1' * 40}"
            return self._answer(200, {"success": True, "commitOid": "1" * 40, "commitUrl": page, "hookOutput": ""})

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
