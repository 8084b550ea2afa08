"""Imports open_clip, transformers and diffusers with progress bars off and without what text models do not need.

All import torchvision for image transforms. Beside a CPU build of torch its compiled operators do not load, which
fails the import, although neither operator is called here.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from dataprep.io.errors import UserError
from dataprep.io.progress_bars import disable_progress_bars

OPERATOR = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_open_clip() -> ModuleType:
    """Returns the module open_clip."""
    disable_progress_bars()
    declare_torchvision_operators()
    import open_clip

    return open_clip


def import_transformers() -> ModuleType:
    """Returns the module transformers; loading models then draws no progress bar.

    It takes torchvision, scipy and scikit-learn for absent, which its text models do not use and which take as many
    CPU-seconds to import as torch.
    """
    disable_progress_bars()
    with _hide_modules("torchvision", "scipy", "sklearn"):
        import transformers
        from transformers.utils import import_utils

        # Each answer is kept for the life of the process.
        found = [import_utils.is_scipy_available(), import_utils.is_sklearn_available()]
        found.append(import_utils.is_torchvision_available())
    if found[-1]:  # imported before, or asked for
        declare_torchvision_operators()
    return transformers


def import_diffusers() -> ModuleType:
    """Returns the module diffusers, which is an extra; raises UserError where it is not installed."""
    disable_progress_bars()
    declare_torchvision_operators()
    try:
        import diffusers
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        raise UserError("models in diffusers' layout need diffusers; pip install 'imagen-ray[diffusers]'") from error
    return diffusers


@contextmanager
def _hide_modules(*names: str) -> Iterator[None]:
    """Makes modules that are not imported yet look absent: None is how Python marks an import as blocked."""
    blocked = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in blocked:
            sys.modules.pop(name, None)


@functools.cache
def declare_torchvision_operators() -> Any:
    """Declares ``torchvision::nms`` and ``qnms`` if torchvision cannot load them.

    Call it before importing any other library that imports torchvision. The result keeps the declaration alive.
    """
    import torch

    try:
        import torchvision

        return None
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + OPERATOR)
    import torchvision  # noqa: F401

    return library
