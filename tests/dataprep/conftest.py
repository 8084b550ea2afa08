"""Fixtures: a real HTTP server on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.web import Web, serve_web


@pytest.fixture
def web() -> Iterator[Web]:
    with serve_web() as site:
        yield site
