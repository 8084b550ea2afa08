"""The architecture, read from the syntax trees: who may import whom, levels without circles, how long things may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

from tests.helpers.paths import ROOT

PACKAGES = ("imagen_ray", "pipeline", "dataprep", "train", "eval")
# module prefix -> the modules of other packages that it may import; the longest prefix that fits counts.
ARROWS: dict[str, tuple[str, ...]] = {
    "imagen_ray": ("pipeline", "dataprep", "eval"),
    "pipeline": ("dataprep", "train", "eval"),
    "dataprep": (),
    "train": ("dataprep.io", "dataprep.text"),
    "train.models": ("dataprep.io", "dataprep.text.encoder"),
    "train.diffusion": ("dataprep.io",),
    "eval": (
        "dataprep.card.audit",  # samples are audited as the training data is
        "dataprep.io",
        "dataprep.images",
        "dataprep.text",
        "dataprep.synthetic",
        "train.models",
        "train.diffusion",
    ),
}
# Levels inside a package, lowest first: a folder or file imports only from lower levels. A file that is not named here
# belongs to its folder; `train/models` and `train/diffusion` on one level know nothing of each other.
LEVELS: dict[str, tuple[tuple[str, ...], ...]] = {
    "imagen_ray": (("_run",), ("imagen_ray",)),
    "dataprep": (
        ("io",),
        ("card", "filters", "images", "synthetic", "text"),
        ("annotate_config", "download", "listing", "pack_config"),
        ("annotate", "pack"),
    ),
    "train": (
        ("beta_schedule",),
        (
            *("diffusion", "errors", "flops", "init_config", "lr_schedule", "malloc", "models"),
            *("preemption", "timing", "watchdog"),
        ),
        ("config", "optimizers"),
        ("muon",),
        ("deepspeed_config", "loader", "replica_engine", "trackers"),
        ("adversary", "codebook", "logger"),
        ("engine", "task"),
        ("checkpoint_files", "host_copies"),
        ("checkpoint", "resume"),
        ("initial_weights",),
        ("loop",),
        ("tasks",),
    ),
    "eval": (("captioning", "clip"), ("sampling",), ("metrics",), ("judging",)),
    "pipeline": (
        ("profile", "terminal", "units"),
        ("store",),
        ("report", "runtime"),
        ("stages",),
        ("compare", "config", "execution", "lineage"),
        ("config_loading", "config_schema", "inference"),
        ("jobs", "planner"),
        ("cli",),
        ("__main__",),
    ),
}
MAX_FILE, MAX_FUNCTION = 400, 60  # lines, which a file and a function stay under
# library -> the modules that may import it.
CONFINED = {
    "ray": ("pipeline",),
    "deepspeed": ("train.engine",),
    "typer": ("pipeline.cli",),
    "plotly": ("pipeline.report",),
}


def find_modules() -> dict[str, Path]:
    """Returns every module of the product by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = find_modules()


def read_imports(path: Path) -> set[str]:
    """Returns everything that a module imports, in functions too, but not for type checking alone."""
    names: set[str] = set()
    for node in walk_running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else str(node.module) for name in inner}
    return names


def walk_running(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes below ``node`` without those under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from walk_running(child)


IMPORTS = {name: read_imports(path) for name, path in MODULES.items()}


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def part_of(module: str) -> str:
    """Returns the folder or file of its package that a module belongs to."""
    return module.split(".")[1] if "." in module else module


@pytest.mark.parametrize("name", MODULES)
def test_packages_import_along_the_arrows(name: str) -> None:
    package = name.split(".")[0]
    prefix = max((key for key in ARROWS if within(name, (key,))), key=len)
    ours = {used for used in IMPORTS[name] if used in MODULES and used.split(".")[0] != package}
    assert {used for used in ours if not within(used, ARROWS[prefix])} == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_import_from_lower_levels(package: str) -> None:
    level = {part: number for number, parts in enumerate(LEVELS[package]) for part in parts}
    own = {name for name in MODULES if name.split(".")[0] == package and (name != package or package == "imagen_ray")}
    assert {part_of(name) for name in own} == level.keys(), "name new folders and files in LEVELS, dead ones go"
    upward = {
        f"{name} imports {used}"
        for name in own
        for used in IMPORTS[name] & own
        if part_of(used) != part_of(name) and level[part_of(used)] >= level[part_of(name)]
    }
    assert upward == set()


def test_imports_form_no_circle() -> None:
    graph = nx.DiGraph((name, used) for name, imported in IMPORTS.items() for used in imported if used in MODULES)
    assert [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1] == []


@pytest.mark.parametrize("library", CONFINED)
def test_libraries_stay_where_they_belong(library: str) -> None:
    users = [name for name, imported in IMPORTS.items() if any(within(used, (library,)) for used in imported)]
    assert users, f"nobody uses {library}: drop it"
    assert [name for name in users if not within(name, CONFINED[library])] == []


def test_no_class_name_is_defined_twice() -> None:
    homes: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name.lstrip("_"), []).append(name)
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_nobody_imports_the_eval_package_by_its_bare_name() -> None:
    # `import eval` would hide the builtin.
    assert [name for name, imported in IMPORTS.items() if "eval" in imported] == []


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "benchmarks", "examples"])
def test_files_and_functions_are_short(folder: str) -> None:
    long = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) >= MAX_FILE:
            long.append(f"{path}: {lines} lines; split it")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines >= MAX_FUNCTION:
                    long.append(f"{path}: {node.name} has {lines} lines; split it")
    assert long == []


def test_what_is_fixed_at_the_top() -> None:
    for name in ("pipeline", "dataprep", "train", "eval", "tests", "ray_cluster.yaml", "pyproject.toml"):
        assert (ROOT / name).exists(), name
