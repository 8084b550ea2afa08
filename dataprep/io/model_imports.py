"""Imports open_clip and transformers with torchvision's operators declared and progress bars off.

Both import torchvision for image transforms. Beside a CPU build of torch its compiled operators do not load, which
fails the import, although neither operator is called here.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from dataprep.io.progress_bars import disable_progress_bars

OPERATOR = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_open_clip() -> ModuleType:
    """Returns the module open_clip."""
    disable_progress_bars()
    declare_torchvision_operators()
    import open_clip

    return open_clip


def import_transformers() -> ModuleType:
    """Returns the module transformers; loading models then draws no progress bar."""
    disable_progress_bars()
    declare_torchvision_operators()
    import transformers

    return transformers


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
