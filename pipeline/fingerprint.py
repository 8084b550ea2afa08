"""What a stage's output depends on, found and not declared: the code it reaches and the libraries that code imports.

From a stage's function the names it uses are followed through our own modules, symbol by symbol (a function, a class,
an assignment at module level), over ``import`` and ``from`` statements wherever they stand. Each reached symbol is
hashed as a syntax tree without docstrings, so a comment or a reformatting changes nothing. The third-party modules
that reached symbols name give the library versions. Templates, style sheets and tables beside a reached module count
with every byte.

Limits, by design: names are followed, not values. A module must not be imported through a computed string, and a
method is reached through its class (which whoever makes the object has to name).
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

ROOT = Path(__file__).resolve().parent.parent  # the code that runs, whatever sys.path says
OURS = ("pipeline", "dataprep", "train", "eval")
DATA = (".jinja", ".css", ".js", ".yaml")  # files beside a module that it reads by their path
WHOLE = "*"  # a module used as a value (`import x; f(x)`): everything in it counts


@dataclass(frozen=True)
class Symbol:
    """One module-level definition: the hash of its tree and every name and attribute chain that it mentions."""

    digest: str
    uses: frozenset[str]


@dataclass
class Module:
    """A parsed module of ours: its symbols, and what its imported names stand for."""

    symbols: dict[str, Symbol] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # name -> (module, attribute or None)


def digest(value: Any) -> str:
    """A sha256 in hex of any JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def reached(function: Callable[..., Any], extra: Iterable[type[Any]] = ()) -> tuple[dict[str, str], dict[str, str]]:
    """The code and the libraries that ``function`` (and the classes in ``extra``) reach.

    Returns:
        ``{"module:symbol": sha256 of its tree}`` and ``{distribution: version}``, Python's own included.
    """
    code: dict[str, str] = {}
    libraries: set[str] = set()
    roots: list[Any] = [function, *extra]
    todo = [(item.__module__, item.__qualname__.split(".")[0]) for item in roots]
    while todo:
        module_name, name = todo.pop()
        if module_name.split(".")[0] not in OURS:
            libraries.add(module_name.split(".")[0])
            continue
        module = parse(module_name)
        if name != WHOLE and name not in module.symbols:
            if name in module.imports:  # re-exported: follow to where it is defined
                todo.append(_target(*module.imports[name]))
            elif _file(f"{module_name}.{name}") is not None:
                todo.append((f"{module_name}.{name}", WHOLE))
            continue
        # Statements that define nothing (a bare call, an if) run at import: they always count.
        for symbol in [*module.symbols] if name == WHOLE else [name, ""]:
            key = f"{module_name}:{symbol}"
            if key in code or symbol not in module.symbols:
                continue
            code[key] = module.symbols[symbol].digest
            code |= _data(module_name)
            for use in module.symbols[symbol].uses:
                todo.extend(_resolve(module_name, module, use))
    return dict(sorted(code.items())), versions(libraries)


def _resolve(module_name: str, module: Module, use: str) -> list[tuple[str, str]]:
    """What a dotted use such as ``codec.encode`` or ``helper`` stands for in ``module``: (module, symbol) pairs."""
    head, *rest = use.split(".")
    if head in module.symbols:
        return [(module_name, head)]
    if head not in module.imports:
        return []  # a local variable or a builtin
    target, attribute = module.imports[head]
    if attribute is not None:
        found = _target(target, attribute)
        if found[1] != WHOLE:
            return [found]
        target = found[0]  # `from package import module`
    while rest and target.split(".")[0] in OURS and _file(f"{target}.{rest[0]}"):
        target = f"{target}.{rest.pop(0)}"
    return [(target, rest[0] if rest else WHOLE)]


def _target(module: str, attribute: str | None) -> tuple[str, str]:
    """Where ``from module import attribute`` leads: a symbol of the module, or a submodule as a whole."""
    if attribute is None:
        return module, WHOLE
    if module.split(".")[0] in OURS and _file(f"{module}.{attribute}") and attribute not in parse(module).symbols:
        return f"{module}.{attribute}", WHOLE
    return module, attribute


@cache
def _file(module_name: str) -> Path | None:
    """The source of a module or package of ours; None where there is none of that name."""
    path = ROOT.joinpath(*module_name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def _data(module_name: str) -> dict[str, str]:
    """``{"package/file": sha256}`` of the `DATA` files beside a module."""
    file = _file(module_name)
    assert file is not None, module_name
    found = (path for path in file.parent.iterdir() if path.suffix in DATA)
    return {path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@cache
def parse(module_name: str) -> Module:
    """Parses a module of ours without importing it."""
    file = _file(module_name)
    if file is None:
        raise ModuleNotFoundError(f"{module_name} is imported by a stage but cannot be found")
    return parse_source(file.read_text(encoding="utf-8"), module_name)


def parse_source(source: str, module_name: str) -> Module:
    """The symbols and imports of ``source``. Symbol "" gathers the statements that define no name."""
    tree = _without_docstrings(ast.parse(source))
    module = Module()
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
            for name in _defines(statement):
                nodes.setdefault(name, []).append(statement)
    for name, statements in nodes.items():
        text = "\n".join(ast.dump(statement) for statement in statements)
        uses = frozenset(use for statement in statements for use in _uses(statement))
        module.symbols[name] = Symbol(hashlib.sha256(text.encode()).hexdigest(), uses)
    return module


def _defines(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        names = [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
        return names or [""]
    return [""]


def _uses(node: ast.AST) -> Iterator[str]:
    """Every name, and every attribute chain that starts at a name, in ``node``.

    The annotations of functions are left out: they decide nothing at run time. Those of classes stay, since a config
    class is made of them.
    """
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        chain, inner = [node.attr], node.value
        while isinstance(inner, ast.Attribute):
            chain.append(inner.attr)
            inner = inner.value
        yield from [".".join([inner.id, *reversed(chain)])] if isinstance(inner, ast.Name) else _uses(inner)
    else:
        for name, value in ast.iter_fields(node):
            skip = (isinstance(node, ast.arg) and name == "annotation") or name == "returns"
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not skip:
                    yield from _uses(child)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                node.body = body[1:] or [ast.Pass()]
    return tree


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def versions(modules: Iterable[str]) -> dict[str, str]:
    """Distribution -> version for top-level third-party modules; the standard library counts as ``python``."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for module in modules:
        for distribution in _distributions().get(module, []):
            found[distribution] = importlib.metadata.version(distribution)
    return dict(sorted(found.items()))
