"""Finds our packages where they are installed, whatever modules the user's working folder has.

Our packages have plain names (`train`, `eval`), and Python and Ray search the working folder first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib.machinery import all_suffixes
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("dataprep", "eval", "imagen_ray", "pipeline", "train")
ROOT = Path(__file__).resolve().parents[2]  # the folder that holds our packages


def list_shadowing_paths(paths: Iterable[str]) -> list[str]:
    """Returns which of ``paths`` would make Python import a module of another one's in place of ours."""
    return sorted({path for path in paths if Path(path or ".").resolve() != ROOT and _holds_our_names(Path(path))})


def list_worker_shadows() -> list[str]:
    """Returns the shadowing ones of the paths that Ray adds to sys.path in workers: the driver's and the script's."""
    return list_shadowing_paths([os.getcwd(), str(Path(sys.argv[0]).resolve().parent)])


def hide_shadowing_paths() -> None:
    """Removes shadowing entries from this process's sys.path."""
    shadowing = set(list_shadowing_paths(sys.path))
    sys.path[:] = [path for path in sys.path if path not in shadowing]


def check_packages() -> None:
    """Raises ImportError, naming the file, if a script beside a ``train.py`` of its own would import that for ours."""
    for name in PACKAGES:
        spec = find_spec(name)
        found = spec.origin if spec else None
        if found is None or Path(found).resolve().parent.parent != ROOT:
            where = found or (spec and list(spec.submodule_search_locations or ())) or "nowhere"
            raise ImportError(
                f"`import {name}` finds {where} in place of imagen-ray's package of that name ({ROOT / name}); "
                "rename that module, or move the script to another folder"
            )


def python_command(*words: str) -> list[str]:
    """Returns the command ``python -m pipeline WORDS``, with our code whatever folder it starts in."""
    start = (
        f"import sys; root = {str(ROOT)!r}; sys.path[:1] = [] if root in sys.path else [root]; "
        "import runpy; runpy.run_module('pipeline', None, '__main__', alter_sys=True)"
    )
    return [sys.executable, "-c", start, *words]


def _holds_our_names(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in PACKAGES) or any(
        (folder / f"{name}{suffix}").exists() for name in PACKAGES for suffix in all_suffixes()
    )
