"""The loopback server of the corpus."""

from __future__ import annotations

import http.client

import pytest

from dataprep.synthetic.config import ScenesConfig
from dataprep.synthetic.corpus import build_file, build_scene
from dataprep.synthetic.server import serve_scenes

CONFIG = ScenesConfig(count=1500, image_size=64)


def test_the_server_answers_on_one_connection() -> None:
    with serve_scenes(CONFIG, 5) as (host, port):
        connection = http.client.HTTPConnection(host, port, timeout=10)
        for index in range(60):
            row = build_scene(CONFIG, 5, index)
            connection.request("GET", "/" + row.url.rpartition("/")[2])
            response = connection.getresponse()
            body, expected = response.read(), build_file(CONFIG, 5, row)
            assert (response.status, body) == ((404, b"") if expected is None else (200, expected))
            if expected is not None:
                assert str(response.getheader("Content-Type")).startswith("image/")
        for path in ("/", "/999999.jpg", "/000000.gif", "/x.jpg", "/../etc/passwd"):
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert response.status == 404, path
        connection.close()
    with pytest.raises(OSError):
        http.client.HTTPConnection(host, port, timeout=1).request("GET", "/000000.jpg")
