"""The public names."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

import imagen_ray
from tests.helpers.paths import ROOT


def test_importing_it_loads_nothing_heavy() -> None:
    probe = "import sys, imagen_ray; imagen_ray.__version__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "ray", "pyarrow", "numpy", "pydantic"}.isdisjoint(done.stdout.split())


def test_the_names_are_those_of_the_packages() -> None:
    from eval.sampling.cascade import Cascade
    from pipeline.config_loading import load_config

    assert imagen_ray.Cascade is Cascade
    assert imagen_ray.load_config is load_config
    assert imagen_ray.load_config(ROOT / "configs" / "smoke.yaml", ["seed=3"]).seed == 3
    assert set(dir(imagen_ray)) >= {"Cascade", "load_config", "run", "__version__"}


def test_the_version_is_that_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert imagen_ray.__version__ == project["version"]


def test_an_unknown_name_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Cascad'; it has Cascade, __version__, load_config, run"):
        _ = imagen_ray.Cascad


@pytest.mark.parametrize("package", ["imagen_ray", "pipeline", "dataprep", "train", "eval"])
def test_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
