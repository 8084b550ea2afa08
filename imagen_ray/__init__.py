"""The Python interface of imagen-ray, see docs/python_api.md.

Importing it loads nothing heavy: each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.sampling.cascade import Cascade
    from imagen_ray._run import run
    from pipeline.config_loading import load_config

    __version__: str

__all__ = ["Cascade", "__version__", "load_config", "run"]

_MODULES = {
    "Cascade": "eval.sampling.cascade",
    "load_config": "pipeline.config_loading",
    "run": "imagen_ray._run",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from dataprep.io.version import package_version

        return package_version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from pipeline.runtime.own_code import check_packages

    check_packages()
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
