"""Postpones the import of packages that other libraries import and, for what is done here, do not use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"  # torch.compile, with sympy: takes as many CPU-seconds to import as torch
# Decorators that say how the compiler is to treat a function. The function itself stays as it is.
COMPILER_MARKS = ("allow_in_graph", "assume_constant_result", "disable")


@contextmanager
def postpone_imports(*packages: str) -> Iterator[None]:
    """Lets modules import ``packages`` and names of theirs inside the block without loading them.

    What was imported so is loaded when it is called; a call inside the block ends the postponing. Packages that are
    loaded already are left alone. A class that is subclassed or asked for by `isinstance` cannot be postponed.
    """
    finder = _Finder([package for package in packages if package not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        finder.end()


class _Finder(MetaPathFinder, Loader):
    """Finds `_PostponedModule` for packages and what is in them."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages
        self.modules: list[ModuleType] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if any(name == package or name.startswith(f"{package}.") for package in self.packages):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.modules.append(_PostponedModule(spec.name, self))
        return self.modules[-1]

    def exec_module(self, module: ModuleType) -> None:
        pass

    def end(self) -> None:
        """Makes Python find the real packages from here on."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for module in self.modules:
            sys.modules.pop(module.__name__, None)
            parent, _, name = module.__name__.rpartition(".")
            if parent in sys.modules:
                vars(sys.modules[parent]).pop(name, None)
        self.modules.clear()


class _PostponedModule(ModuleType):
    """Stands for a module: its names are postponed while its finder is at work, and real ones after that."""

    def __init__(self, name: str, finder: _Finder) -> None:
        super().__init__(name)
        vars(self)["finder"] = finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        finder = vars(self)["finder"]
        if finder in sys.meta_path:
            return _PostponedCall(self.__name__, name, finder)
        return getattr(importlib.import_module(self.__name__), name)


class _PostponedCall:
    """A function or class of a module that is imported when it is called."""

    def __init__(self, module: str, name: str, finder: _Finder) -> None:
        self.module, self.name, self.finder = module, name, finder

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.module == COMPILER and self.name in COMPILER_MARKS:
            return args[0] if args and args[0] is not None else lambda function: function
        self.finder.end()
        return getattr(importlib.import_module(self.module), self.name)(*args, **kwargs)
