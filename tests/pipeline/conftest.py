"""One small local Ray for the tests that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Ray with two CPUs, started here and gone with the module: the job tests start clusters of their own."""
    import ray

    from pipeline.cluster import connect
    from pipeline.config import ClusterConfig

    connect(ClusterConfig(cpus=2))
    yield
    ray.shutdown()
