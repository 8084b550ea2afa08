"""Connecting to Ray: clusters that do not answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import ray

from dataprep.io.errors import UserError
from pipeline.runtime import ray_session
from pipeline.runtime.config import ClusterConfig
from pipeline.runtime.ray_session import connect_ray


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def test_a_cluster_that_is_gone_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=rf"cluster\.address=127\.0\.0\.1:{port}: no Ray cluster answers.*RAY_ADDRESS"):
        connect_ray(ClusterConfig())


def test_a_cluster_that_never_answers_is_a_user_error(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "CONNECT_TIMEOUT", 0.5)
    monkeypatch.setattr(ray, "init", lambda **_: socket.create_connection(("127.0.0.1", silent_port)).recv(1))
    with pytest.raises(UserError, match="no answer within 0 s"):
        connect_ray(ClusterConfig(address=f"127.0.0.1:{silent_port}"))


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "head"])
def test_addresses_of_other_forms_are_left_to_ray(address: str) -> None:
    ray_session._check_port(address)
