"""Adapters over a cascade: each is merged into the weights of the stage, or the text encoder, that it fits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dataprep.io.errors import UserError
from eval.sampling.stage_sampler import LoadedStage
from train.models.adapters.files import Adapter, load_adapter, match_layers, merge_adapter

ENCODER = "encoder"  # stands for the text encoder where a stage is named
CHOICE = re.compile(r"(?:(?P<stage>[a-z][a-z0-9_]*)=)?(?P<path>.+?)(?::(?P<weight>-?\d+(?:\.\d*)?|-?\.\d+))?")


@dataclass(frozen=True)
class AdapterChoice:
    """An adapter that is asked for: its file, how strongly, and where; stage None: where it fits."""

    path: str
    weight: float = 1.0
    stage: str | None = None

    @classmethod
    def parse(cls, text: str) -> AdapterChoice:
        """Parses ``[STAGE=]FILE[:WEIGHT]``; raises UserError for an empty text."""
        match = CHOICE.fullmatch(text)
        if match is None:
            raise UserError(f"--adapter {text!r}: give [STAGE=]FILE[:WEIGHT], such as adapter.safetensors:0.8")
        return cls(match["path"], float(match["weight"] or 1), match["stage"])


def apply_adapters(
    choices: Sequence[AdapterChoice], stages: Sequence[LoadedStage], encoder: Any
) -> list[AdapterChoice]:
    """Merges adapters into the models in place, one after the other; returns the choices with their stages.

    ``encoder`` has the text encoder's network as ``model``. Raises UserError for an adapter that fits none of them, or
    several.
    """
    models = {stage.entry.name: stage.model for stage in stages}
    if hasattr(encoder, "model"):
        models[ENCODER] = encoder.model
    return [_apply(choice, models, stages) for choice in choices]


def _apply(choice: AdapterChoice, models: dict[str, Any], stages: Sequence[LoadedStage]) -> AdapterChoice:
    adapter = load_adapter(choice.path)
    if choice.stage is not None and choice.stage not in models:
        raise UserError(f"adapter {choice.path}: there is no stage {choice.stage!r}; take one of {', '.join(models)}")
    candidates = [choice.stage] if choice.stage is not None else list(models)
    fitting = [name for name in candidates if match_layers(_for_part(adapter, name), models[name].state_dict())]
    if len(fitting) != 1:
        problem = f"fits {' and '.join(fitting)}" if fitting else f"fits none of {', '.join(candidates)}"
        remedy = "name one as STAGE=FILE" if fitting else "give one that was trained on this model"
        raise UserError(f"adapter {choice.path}: {problem}; {remedy}")
    model = models[fitting[0]]
    model.load_state_dict(merge_adapter(model.state_dict(), _for_part(adapter, fitting[0]), choice.weight))
    return replace(choice, stage=fitting[0])


def _for_part(adapter: Adapter, name: str) -> Adapter:
    """Returns the adapter without a text decoder's layers where the text encoder is meant, which has none."""
    if name != ENCODER:
        return adapter
    pairs = {layer: pair for layer, pair in adapter.pairs.items() if not layer.startswith("decoder.")}
    return replace(adapter, pairs=pairs, scales={layer: adapter.scales[layer] for layer in pairs})
