"""Finds the code and libraries that a stage's output depends on; nothing is declared by hand.

Starting at a stage's function, follows the names it uses through our own modules, symbol by symbol (function, class or
module-level assignment), across ``import`` and ``from`` statements anywhere. Each reached symbol is hashed as a syntax
tree without docstrings, so comments and formatting do not matter. Third-party modules that reached symbols use
give the library versions. Templates, style sheets and tables in the folder of a reached module are hashed as bytes.

Limits, by design: names are followed, not values. Modules must not be imported through a computed string, and a method
is reached through its class, which must be named where the object is created.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.store.parse_cache import ParseCache

ROOT = Path(__file__).resolve().parents[2]  # of the running code, regardless of sys.path
OUR_PACKAGES = ("pipeline", "dataprep", "train", "eval")
DATA_SUFFIXES = (".jinja", ".css", ".js", ".yaml")  # of files that a module in the same folder reads
WHOLE_MODULE = "*"  # the symbol that stands for all of a module used as a value (`import x; f(x)`)


@dataclass(frozen=True)
class Symbol:
    """A module-level definition: the hash of its syntax tree, and the names and attribute chains that it uses."""

    digest: str
    uses: frozenset[str]


@dataclass
class ParsedModule:
    """The symbols of a module of ours, and what its imported names refer to."""

    symbols: dict[str, Symbol] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # name -> (module, attribute or None)

    def to_json(self) -> list[Any]:
        """Returns the module as JSON-serialisable values."""
        symbols = {name: [symbol.digest, sorted(symbol.uses)] for name, symbol in self.symbols.items()}
        return [symbols, self.imports]

    @classmethod
    def from_json(cls, value: Any) -> ParsedModule:
        """Returns the module that `to_json` turned into ``value``."""
        symbols, imports = value
        return cls(
            {name: Symbol(digest, frozenset(uses)) for name, (digest, uses) in symbols.items()},
            {name: (module, attribute) for name, (module, attribute) in imports.items()},
        )


def hash_json(value: Any) -> str:
    """Returns the sha256 (hex) of any JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def collect_dependencies(
    function: Callable[..., Any], classes: Iterable[type[Any]] = ()
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the code and the libraries that ``function`` and ``classes`` reach.

    Returns:
        ``{"module:symbol": sha256 of its syntax tree}`` and ``{distribution: version}``, Python included.
    """
    code: dict[str, str] = {}
    libraries: set[str] = set()
    roots: list[Any] = [function, *classes]
    todo = [(item.__module__, item.__qualname__.split(".")[0]) for item in roots]
    while todo:
        module_name, name = todo.pop()
        if module_name.split(".")[0] not in OUR_PACKAGES:
            libraries.add(module_name.split(".")[0])
            continue
        module = parse_module(module_name)
        if name != WHOLE_MODULE and name not in module.symbols:
            if name in module.imports:  # re-exported: follow to where it is defined
                todo.append(_resolve_import(*module.imports[name]))
            elif _find_source(f"{module_name}.{name}") is not None:
                todo.append((f"{module_name}.{name}", WHOLE_MODULE))
            continue
        # Statements that define no name (a bare call, an if) run at import: they always count.
        for symbol in [*module.symbols] if name == WHOLE_MODULE else [name, ""]:
            key = f"{module_name}:{symbol}"
            if key in code or symbol not in module.symbols:
                continue
            code[key] = module.symbols[symbol].digest
            code |= _hash_data_files(module_name)
            for use in module.symbols[symbol].uses:
                todo.extend(_resolve_use(module_name, module, use))
    return dict(sorted(code.items())), list_versions(libraries)


def _resolve_use(module_name: str, module: ParsedModule, use: str) -> list[tuple[str, str]]:
    """Returns the (module, symbol) pairs that a use such as ``codec.encode`` or ``helper`` refers to in ``module``."""
    head, *rest = use.split(".")
    if head in module.symbols:
        return [(module_name, head)]
    if head not in module.imports:
        return []  # a local variable or a builtin
    target, attribute = module.imports[head]
    if attribute is not None:
        found = _resolve_import(target, attribute)
        if found[1] != WHOLE_MODULE:
            return [found]
        target = found[0]  # `from package import module`
    while rest and target.split(".")[0] in OUR_PACKAGES and _find_source(f"{target}.{rest[0]}"):
        target = f"{target}.{rest.pop(0)}"
    return [(target, rest[0] if rest else WHOLE_MODULE)]


def _resolve_import(module: str, attribute: str | None) -> tuple[str, str]:
    """Returns what ``from module import attribute`` refers to: a symbol of the module, or a whole submodule."""
    if attribute is None:
        return module, WHOLE_MODULE
    if (
        module.split(".")[0] in OUR_PACKAGES
        and _find_source(f"{module}.{attribute}")
        and attribute not in parse_module(module).symbols
    ):
        return f"{module}.{attribute}", WHOLE_MODULE
    return module, attribute


@cache
def _find_source(module_name: str) -> Path | None:
    """Returns the source file of a module or package of ours; None if there is none."""
    path = ROOT.joinpath(*module_name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def _hash_data_files(module_name: str) -> dict[str, str]:
    """Returns ``{"package/file": sha256}`` of the data files in a module's folder."""
    file = _find_source(module_name)
    assert file is not None, module_name
    found = (path for path in file.parent.iterdir() if path.suffix in DATA_SUFFIXES)
    return {path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@cache
def parse_module(module_name: str) -> ParsedModule:
    """Returns a parsed module of ours, without importing it."""
    file = _find_source(module_name)
    if file is None:
        raise ModuleNotFoundError(f"{module_name} is imported by a stage but was not found")
    source = file.read_bytes()
    key = hashlib.sha256(source).hexdigest()
    kept = _open_cache().get(module_name, key)
    if kept is None:
        module = parse_source(source.decode(), module_name)
        _open_cache().put(module_name, key, module.to_json())
        return module
    return ParsedModule.from_json(kept)


@cache
def _open_cache() -> ParseCache:
    return ParseCache(hashlib.sha256(Path(__file__).read_bytes()).hexdigest())


def save_parsed_sources() -> None:
    """Keeps what was parsed for the next command, see `pipeline.store.parse_cache`."""
    _open_cache().save()


def parse_source(source: str, module_name: str) -> ParsedModule:
    """Returns the symbols and imports of ``source``; symbol "" holds the statements that define no name."""
    tree = _without_docstrings(ast.parse(source))
    module = ParsedModule()
    nodes: dict[str, list[ast.stmt]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                module.imports[name] = (alias.name if alias.asname else name, None)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), module_name.rpartition(".")[0])
            for alias in node.names:
                module.imports[alias.asname or alias.name] = (base, alias.name)
    for statement in tree.body:
        if not isinstance(statement, ast.Import | ast.ImportFrom):
            for name in _defined_names(statement):
                nodes.setdefault(name, []).append(statement)
    for name, statements in nodes.items():
        text = "\n".join(ast.dump(statement) for statement in statements)
        uses = frozenset(use for statement in statements for use in _used_names(statement))
        module.symbols[name] = Symbol(hashlib.sha256(text.encode()).hexdigest(), uses)
    return module


def _defined_names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        names = [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
        return names or [""]
    return [""]


def _used_names(node: ast.AST) -> Iterator[str]:
    """Yields every name, and every attribute chain that starts at a name, in ``node``.

    Skips annotations of functions, which have no effect at run time. Those of classes count: config classes consist of
    them.
    """
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        chain, inner = [node.attr], node.value
        while isinstance(inner, ast.Attribute):
            chain.append(inner.attr)
            inner = inner.value
        yield from [".".join([inner.id, *reversed(chain)])] if isinstance(inner, ast.Name) else _used_names(inner)
    else:
        for name, value in ast.iter_fields(node):
            skip = (isinstance(node, ast.arg) and name == "annotation") or name == "returns"
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not skip:
                    yield from _used_names(child)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                node.body = body[1:] or [ast.Pass()]
    return tree


@cache
def _distributions() -> dict[str, list[str]]:
    """Returns the distributions of each top-level module; reading all metadata anew takes longer than all else."""
    folders = [folder for folder in map(Path, sys.path) if any(folder.glob("*.dist-info"))]
    key = hash_json([[str(folder), folder.stat().st_mtime_ns] for folder in folders])
    kept = _open_cache().get("distributions", key)
    if kept is None:
        kept = dict(importlib.metadata.packages_distributions())
        _open_cache().put("distributions", key, kept)
    return dict(kept)


@cache
def _read_version(distribution: str) -> str:
    return importlib.metadata.version(distribution)


def list_versions(modules: Iterable[str]) -> dict[str, str]:
    """Returns distribution -> version for top-level third-party modules; the standard library counts as ``python``."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for module in set(modules) - sys.stdlib_module_names:  # a backport of a standard module is not used
        for distribution in _distributions().get(module, []):
            found[distribution] = _read_version(distribution)
    return dict(sorted(found.items()))
