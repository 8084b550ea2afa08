"""One small local Ray, and one finished run, for the tests that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from run_fakes import ROWS, Made, make_run, serve, write_list

from dataprep import storage


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Ray with two CPUs, started here and gone with the module: the job tests start clusters of their own."""
    import ray

    from pipeline.cluster import connect
    from pipeline.config import ClusterConfig

    connect(ClusterConfig(cpus=2))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run that nobody may write to. Of each stage it has a second artifact, from a shorter list."""
    folder = tmp_path_factory.mktemp("forget")
    write_list(folder / "list.csv")
    with serve([]) as hosts:
        made = make_run(folder / "run", folder / "list.csv", hosts)
        # Two rows fewer at the start: the same pictures under other keys.
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
