"""The sources of initial weights, and the one that a path is. Light: loads no torch."""

from __future__ import annotations

from dataprep.io.errors import UserError
from train.initial_weights.base import WeightSource
from train.initial_weights.checkpoint_folder import CHECKPOINT
from train.initial_weights.file import FILE
from train.initial_weights.hub import HUB
from train.initial_weights.library_folders import DIFFUSERS, TRANSFORMERS
from train.initial_weights.stage_folder import AUTOENCODER, CLIP, STAGE

WEIGHT_SOURCES: dict[str, WeightSource] = {  # the first that recognises a path counts
    "hub": HUB,
    "file": FILE,
    "stage": STAGE,
    "autoencoder": AUTOENCODER,
    "clip": CLIP,
    "diffusers": DIFFUSERS,
    "transformers": TRANSFORMERS,
    "checkpoint": CHECKPOINT,
}


def find_weight_source(path: str) -> WeightSource:
    """Returns the source that recognises ``path``; raises UserError if none does."""
    for source in WEIGHT_SOURCES.values():
        if source.recognise(path):
            return source
    known = ", ".join(source.title for source in WEIGHT_SOURCES.values())
    raise UserError(f"{path}: no weights are found there; name a run, an export, or {known}")
