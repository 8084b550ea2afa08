"""One small local Ray for the tests that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Ray with two CPUs, started here."""
    import ray

    from pipeline.cluster import connect
    from pipeline.config import ClusterConfig

    connect(ClusterConfig(cpus=2))
    yield
    ray.shutdown()
