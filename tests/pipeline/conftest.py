"""A small local Ray and a finished run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dataprep.io import storage
from tests.helpers.runs import ROWS, Made, make_run, serve, write_list


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray with two CPUs, one per test process: its worker processes stay warm from test to test."""
    import ray

    from pipeline.runtime.config import ClusterConfig
    from pipeline.runtime.ray_session import connect_ray

    connect_ray(ClusterConfig(cpus=2))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run that tests must not change; each stage has a second artifact, from a shorter list."""
    folder = tmp_path_factory.mktemp("forget")
    write_list(folder / "list.csv")
    with serve([]) as hosts:
        made = make_run(folder / "run", folder / "list.csv", hosts)
        # Two rows fewer at the start: the same images have other keys.
        write_list(folder / "short.csv", ROWS - 1)
        lines = (folder / "short.csv").read_text().splitlines()
        (folder / "short.csv").write_text("\n".join([lines[0], *lines[3:]]) + "\n")
        record = storage.read_json(made.run.path("run.json"))
        pages = {name: (folder / "run" / name).read_bytes() for name in ("report.html", "metrics.json", "datacard.md")}
        make_run(folder / "run", folder / "short.csv", hosts, name="two")
        storage.write_json(made.run.path("run.json"), record)
        for name, data in pages.items():
            (folder / "run" / name).write_bytes(data)
    return made
