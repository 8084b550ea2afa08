"""Structure of source code: imports, names and sizes.

    python -m benchmarks.structure FOLDER:PACKAGE[,PACKAGE...] ...

For each checkout and its packages: import levels and arrows between modules and between the
folders and files at a package's top (its parts), import circles, class names that are
defined twice, the share of one-word names among top-level functions, uses of ``dict[str, Any]`` in annotations, and the
longest function and file. Reads syntax trees; imports nothing. Imports inside functions and under TYPE_CHECKING are not
arrows: they do not run when a module is imported.
"""

from __future__ import annotations

import ast
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import networkx as nx


def measure_package(root: Path, package: str) -> dict[str, Any]:
    """Returns the counts of one package below ``root``."""
    files = {name_module(path, root): path for path in sorted((root / package).rglob("*.py"))}
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    graph = nx.DiGraph()
    graph.add_nodes_from(trees)
    for name, tree in trees.items():
        package_name = name if files[name].name == "__init__.py" else name.rpartition(".")[0]
        graph.add_edges_from((name, used) for used in find_imports(tree, package_name, trees) if used != name)
    circles = [group for group in nx.strongly_connected_components(graph) if len(group) > 1]
    parts = group_by_part(graph)
    functions = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    top = [node.name for tree in trees.values() for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {
        "modules": len(trees),
        "levels": count_levels(graph),
        "arrows": graph.number_of_edges(),
        "circles": len(circles),
        "parts": parts.number_of_nodes(),
        "part_levels": count_levels(parts),
        "part_arrows": parts.number_of_edges(),
        "one_word_functions": sum(is_one_word(name) for name in top),
        "top_level_functions": len(top),
        "untyped_dicts": sum(count_untyped_dicts(tree) for tree in trees.values()),
        "longest_function": max(((node.end_lineno or 0) - node.lineno + 1 for node in functions), default=0),
        "longest_file": max((len(path.read_text(encoding="utf-8").splitlines()) for path in files.values()), default=0),
        "classes": Counter(
            node.name
            for tree in trees.values()
            for node in tree.body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        ),
    }


def group_by_part(graph: nx.DiGraph) -> nx.DiGraph:
    """Returns the graph between the parts of a package: the folders and files that lie in it directly."""
    part = {name: ".".join(name.split(".")[:2]) for name in graph}
    grouped = nx.DiGraph((part[name], part[used]) for name, used in graph.edges if part[name] != part[used])
    grouped.add_nodes_from(part.values())
    return grouped


def count_levels(graph: nx.DiGraph) -> int:
    """Returns the length of the longest chain of imports; modules in a circle count once."""
    return nx.dag_longest_path_length(nx.condensation(graph)) + 1 if len(graph) else 0


def name_module(path: Path, root: Path) -> str:
    """Returns the dotted name of a source file."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def find_imports(tree: ast.Module, package: str, modules: Mapping[str, Any]) -> Iterator[str]:
    """Yields the modules among ``modules`` that a module of ``package`` imports when it runs."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield from (found for found in (inner if inner in modules else base,) if found in modules)


def is_one_word(name: str) -> bool:
    """Returns whether a function's name is one word, such as ``encode``; a leading underscore does not count."""
    return "_" not in name.strip("_")


def count_untyped_dicts(tree: ast.Module) -> int:
    """Returns how often ``dict[str, Any]`` stands in the annotations of functions and of class fields."""
    annotations: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            annotations += [item.annotation for item in arguments if item.annotation]
            annotations += [node.returns] if node.returns else []
        elif isinstance(node, ast.ClassDef):
            annotations += [item.annotation for item in node.body if isinstance(item, ast.AnnAssign)]
    return sum(ast.unparse(annotation).count("dict[str, Any]") for annotation in annotations)


def measure_checkout(folder: str, packages: list[str]) -> dict[str, Any]:
    """Returns the counts of every package of a checkout, and of all together."""
    found = {package: measure_package(Path(folder), package) for package in packages}
    classes: Counter[str] = sum((counts.pop("classes") for counts in found.values()), Counter())
    functions = sum(counts["top_level_functions"] for counts in found.values())
    one_word = sum(counts["one_word_functions"] for counts in found.values())
    return {
        "packages": found,
        "circles": sum(counts["circles"] for counts in found.values()),
        "class_names_defined_twice": sorted(name for name, count in classes.items() if count > 1),
        "one_word_share": round(one_word / max(1, functions), 3),
        "longest_function": max(counts["longest_function"] for counts in found.values()),
        "longest_file": max(counts["longest_file"] for counts in found.values()),
    }


def main() -> None:
    """Prints the counts of each FOLDER:PACKAGE,... as JSON."""
    for argument in sys.argv[1:]:
        folder, _, packages = argument.rpartition(":")
        print(json.dumps({argument: measure_checkout(folder, packages.split(","))}, indent=1))


if __name__ == "__main__":
    main()
