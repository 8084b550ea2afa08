"""Packages that are imported when they are called."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataprep.io.postponed_imports import postpone_imports

FILES = {
    "heavy_package/__init__.py": "from heavy_package.inner import add\n\n\ndef double(x):\n    return 2 * x\n",
    "heavy_package/inner.py": "def add(x, y=1):\n    return x + y\n",
    "user.py": "import heavy_package\nimport heavy_package.inner\nfrom heavy_package.inner import add\n",
    "impatient.py": "import heavy_package\n\nFOUR = heavy_package.double(2)\n",
}


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith(("heavy_package", "user", "impatient"))]:
        del sys.modules[name]


def is_loaded() -> bool:
    return "heavy_package" in sys.modules


def test_a_package_is_loaded_by_the_first_call() -> None:
    with postpone_imports("heavy_package"):
        user: Any = importlib.import_module("user")
    assert not is_loaded()
    assert user.add(2, y=5) == 7 and is_loaded()
    assert user.heavy_package.double(4) == 8
    assert user.heavy_package.inner.add(1) == 2
    assert importlib.import_module("heavy_package").add(1) == 2


def test_a_call_inside_the_block_loads_it() -> None:
    with postpone_imports("heavy_package"):
        impatient: Any = importlib.import_module("impatient")
        assert impatient.FOUR == 4 and is_loaded()
    assert is_loaded()


def test_a_loaded_package_and_others_are_left_alone() -> None:
    loaded = importlib.import_module("heavy_package")
    with postpone_imports("heavy_package", "heavy"):
        assert importlib.import_module("user").heavy_package is loaded
    assert sys.modules["heavy_package"] is loaded
    with postpone_imports("heavy"):
        assert importlib.import_module("heavy_package").double(1) == 2  # its name only begins so


def test_an_error_in_the_block_ends_it() -> None:
    with pytest.raises(ZeroDivisionError), postpone_imports("heavy_package"):
        raise ZeroDivisionError
    assert importlib.import_module("heavy_package").double(1) == 2


def test_marks_for_the_compiler_leave_functions_as_they_are() -> None:
    code = """
import sys
from dataprep.io.postponed_imports import COMPILER, postpone_imports
import torch
def function(): ...
with postpone_imports(COMPILER):
    import torch._dynamo
    assert torch.compiler.disable(function) is function
    assert torch.compiler.disable(recursive=False)(function) is function
    assert torch._dynamo.allow_in_graph(function) is function
assert COMPILER not in sys.modules
assert torch.compiler.disable(function) is not function and COMPILER in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
