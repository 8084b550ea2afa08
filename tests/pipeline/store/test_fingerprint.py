"""The code part of a fingerprint: every reached symbol counts, comments and docstrings do not."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.store import fingerprint

FILES = {
    "base": '''"""Module."""
LIMIT = 3
UNUSED = 4


def deep(x):
    """Doc."""
    return x + LIMIT


def other(x):
    return x
''',
    "mid": """from dataprep.{p}_base import deep as renamed
import json


class Tool:
    def use(self, x):
        return renamed(x)
""",
    "top": """def stage(ctx):
    from dataprep import {p}_mid
    return {p}_mid.Tool().use(1)


def unreached(ctx):
    return ctx
""",
}


@pytest.fixture
def package(request: pytest.FixtureRequest) -> Iterator[Callable[..., dict[str, str]]]:
    """Returns a function that writes three modules into our package and returns the code that `stage` reaches."""
    import dataprep

    prefix = "zz_test"
    folder = Path(dataprep.__file__).parent
    paths = {name: folder / f"{prefix}_{name}.py" for name in FILES}

    def collect_code(**changed: str) -> dict[str, str]:
        for name, path in paths.items():
            path.write_text(changed.get(name, FILES[name]).replace("{p}", prefix))
        importlib.invalidate_caches()
        fingerprint.parse_module.cache_clear()
        fingerprint._find_source.cache_clear()
        module = importlib.import_module(f"dataprep.{prefix}_top")
        code, _ = fingerprint.collect_dependencies(module.stage)
        return {key.replace(f"dataprep.{prefix}_", ""): value for key, value in code.items()}

    yield collect_code
    for path in paths.values():
        path.unlink()


def test_lazy_and_renamed_imports_are_followed(package: Callable[..., dict[str, str]]) -> None:
    assert set(package()) == {"top:stage", "mid:Tool", "base:deep", "base:LIMIT"}


@pytest.mark.parametrize(
    ("module", "old", "new", "changed"),
    [
        ("base", "LIMIT = 3", "LIMIT = 5", {"base:LIMIT"}),
        ("base", "x + LIMIT", "x - LIMIT", {"base:deep"}),
        ("mid", "return renamed(x)", "return renamed(x) + 1", {"mid:Tool"}),
        ("top", "use(1)", "use(2)", {"top:stage"}),
        ("base", "return x + LIMIT", "return x + LIMIT  # why", set()),
        ("base", '"""Doc."""', '"""Another text."""', set()),
        ("base", "UNUSED = 4", "UNUSED = 5", set()),
        ("base", "def other(x):\n    return x", "def other(x):\n    return -x", set()),
        ("top", "return ctx", "return None", set()),
    ],
)
def test_a_change_counts_where_it_is_reached(
    package: Callable[..., dict[str, str]], module: str, old: str, new: str, changed: set[str]
) -> None:
    before = package()
    assert FILES[module].count(old) == 1
    after = package(**{module: FILES[module].replace(old, new)})
    assert {key for key in before if before[key] != after.get(key)} == changed
    assert set(before) == set(after)


def test_statements_that_define_no_name_count(package: Callable[..., dict[str, str]]) -> None:
    before = package()
    after = package(base=FILES["base"] + "\nif LIMIT:\n    LIMIT.bit_length()\n")
    assert "base:" in after
    assert "base:" not in before


def test_versions_of_reached_libraries_are_listed() -> None:
    from dataprep.io.parquet import read_table

    _, versions = fingerprint.collect_dependencies(read_table)
    assert set(versions) == {"python", "pyarrow", "fsspec"}
