"""A faked cluster for tests of resources."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from pipeline.runtime import resources


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Returns a function that fakes a cluster of these nodes, with the resources of its maximum size in ``limits``."""

    def make(*nodes: dict[str, float], limits: dict[str, float] | None = None) -> None:
        monkeypatch.setattr(resources, "list_node_resources", lambda: list(nodes))
        state = SimpleNamespace(get_max_resources_from_cluster_config=lambda: limits)
        monkeypatch.setattr(resources, "state", state)

    return make
