"""Imports open_clip, transformers and diffusers with progress bars off and without what text models do not need.

All import torchvision for image transforms. Beside a CPU build of torch its compiled operators do not load, which
fails the import, although neither operator is called here. The first two import torch.compile, which is not called
either.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

from dataprep.io.errors import UserError
from dataprep.io.postponed_imports import COMPILER, postpone_imports
from dataprep.io.progress_bars import disable_progress_bars

OPERATOR = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_open_clip() -> ModuleType:
    """Returns the module open_clip. timm, which few of its models are made of, is imported by the first of those."""
    import_transformers()  # which open_clip imports too, and with its progress bars
    with postpone_imports(COMPILER, "timm"):
        declare_torchvision_operators()
        import open_clip

    return open_clip


def import_transformers(models: bool = True) -> ModuleType:
    """Returns the module transformers; loading models then draws no progress bar.

    It takes torchvision, scipy, scikit-learn, accelerate and torch.distributed for absent, which its text models do not
    use, and torch.compile is imported when it is called: together they take as many CPU-seconds to import as torch.

    Args:
        models: whether models will be loaded, or tokenizers and configs alone.
    """
    disable_progress_bars()
    transformers = _import_base()
    if models:
        import torch  # noqa: F401

        with postpone_imports(COMPILER):
            for module in ("generation.utils", "modeling_layers"):  # what every model imports
                importlib.import_module(f"transformers.{module}")
    return transformers


@contextmanager
def silence_load_report() -> Iterator[None]:
    """Keeps transformers from printing which weights a model lacks or leaves out; for callers that check that."""
    logging = _import_base().logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def import_transformers_vision() -> ModuleType:
    """Returns the module transformers for models that see images: the processors of many need torchvision.

    Call it before `import_transformers` in a process: what that takes for absent stays so, and then only models whose
    processors need no torchvision can be loaded.
    """
    declare_torchvision_operators()
    return import_transformers()


def let_transformers_find_scipy() -> None:
    """Lets models be built whose loss needs scipy, as Mask2Former's, which `import_transformers` takes for absent."""
    _import_base()
    from transformers.utils import import_utils

    import_utils.is_scipy_available.cache_clear()


@functools.cache
def _import_base() -> ModuleType:
    """Imports transformers itself, which imports models when they are asked for."""
    with _hide_modules("torchvision", "scipy", "sklearn", "accelerate"), postpone_imports(COMPILER):
        import transformers
        from transformers.utils import import_utils

        # Each answer is kept for the life of the process.
        import_utils.is_scipy_available(), import_utils.is_sklearn_available(), import_utils.is_accelerate_available()
        _ask_without_torch(import_utils.is_torch_distributed_available)
        has_torchvision = import_utils.is_torchvision_available()
    if has_torchvision:  # imported before, or asked for
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


def _ask_without_torch(is_available: Callable[[], bool]) -> bool:
    """Calls a question of transformers whose answer is that of ``torch.distributed.is_available``, which says no."""
    before = sys.modules.get("torch")
    answer = SimpleNamespace(distributed=SimpleNamespace(is_available=lambda: False))
    sys.modules["torch"] = answer  # type: ignore[assignment]
    try:
        return is_available()
    finally:
        if before is None:
            del sys.modules["torch"]
        else:
            sys.modules["torch"] = before


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
