"""The arrows between the packages, read from the imports: who may know whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "dataprep", "train", "eval")
SHARED = ("dataprep.schema", "dataprep.storage", "dataprep.codec", "dataprep.torchvision_operators")
# module prefix -> our modules that it may import, itself always included; the longest prefix that fits counts.
ALLOWED: dict[str, tuple[str, ...]] = {
    "pipeline": PACKAGES,
    "dataprep": (),
    "train": SHARED,
    "train.models": ("dataprep.schema", "dataprep.storage", "dataprep.torchvision_operators"),
    "train.diffusion": ("dataprep.schema",),
    "eval": (*SHARED, "dataprep.text", "dataprep.grammar", "train.models", "train.diffusion"),
}
# library -> the modules that may import it.
CONFINED = {
    "ray": ("pipeline",),
    "deepspeed": ("train.engine",),
    "typer": ("pipeline.cli",),
    "plotly": ("pipeline.report",),
}


def modules() -> list[tuple[str, Path]]:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: str(value) if isinstance(value, str) else "")
def test_imports_follow_the_arrows(name: str, path: Path) -> None:
    prefix = max((key for key in ALLOWED if within(name, (key,))), key=len)
    allowed = (*ALLOWED[prefix], prefix)
    for imported in imports(path):
        if imported.split(".")[0] in PACKAGES and imported not in PACKAGES:
            real = (
                imported
                if (ROOT / imported.replace(".", "/")).exists() or module_file(imported)
                else imported.rpartition(".")[0]
            )
            assert within(real, allowed) or real in PACKAGES, (
                f"{name} imports {imported}; {prefix} may import {allowed}"
            )


def module_file(name: str) -> bool:
    return (ROOT / (name.replace(".", "/") + ".py")).exists()


@pytest.mark.parametrize("library", CONFINED)
def test_libraries_stay_where_they_belong(library: str) -> None:
    users = [name for name, path in modules() if any(within(imported, (library,)) for imported in imports(path))]
    assert users, f"nobody uses {library}: drop it"
    assert [name for name in users if not within(name, CONFINED[library])] == []


def test_nobody_imports_the_eval_package_by_its_bare_name() -> None:
    # `import eval` would hide the builtin.
    assert [name for name, path in modules() if bare_eval(path)] == []


def bare_eval(path: Path) -> bool:
    return any(
        isinstance(node, ast.Import) and any(alias.name == "eval" for alias in node.names)
        for node in ast.walk(ast.parse(path.read_text()))
    )


def test_what_is_fixed_at_the_top() -> None:
    for name in ("pipeline", "dataprep", "train", "eval", "tests", "ray_cluster.yaml", "pyproject.toml"):
        assert (ROOT / name).exists(), name
