"""Every benchmark can be imported, and every name that it imports of ours exists."""

from __future__ import annotations

import ast
import importlib

import pytest

from tests.helpers.paths import ROOT

NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")
# Not in a development install, see the Makefile's target `bench`.
PEERS = {"datasets", "diffusers", "imagen_pytorch", "img2dataset", "streaming", "webdataset"}
OURS = {"benchmarks", "dataprep", "eval", "imagen_ray", "pipeline", "train"}


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_imports(name: str) -> None:
    try:
        module = importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if error.name not in PEERS:
            raise
        pytest.skip(f"{error.name} is not installed")
    assert module.__doc__, f"benchmarks/{name}.py does not say which claim it measures"


@pytest.mark.parametrize("name", NAMES)
def test_names_imported_inside_functions_exist(name: str) -> None:
    tree = ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    for node in imports:
        assert node.module is not None
        if node.module.split(".")[0] in OURS:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):  # a submodule that is not imported yet
                    importlib.import_module(f"{node.module}.{alias.name}")
