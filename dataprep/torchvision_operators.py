"""Lets torchvision be imported beside a CPU build of torch, where its compiled operators do not load.

transformers' models and open_clip import torchvision for image transforms; neither operator is ever called here.
"""

from __future__ import annotations

import functools

import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def declare_torchvision_operators() -> torch.library.Library | None:
    """Declares `torchvision::nms` and `qnms` where torchvision came without them; else does nothing.

    Call it before importing open_clip or a transformers model. What it returns keeps the declaration alive.
    """
    try:
        import torchvision

        return None
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + SCHEMA)
    import torchvision  # noqa: F401

    return library
