"""Adapters over a cascade: each is merged into the weights of the stage, or the text encoder, that it fits.

Files of learned tokens (`dataprep.text.learned_tokens`) are given in the same way, and belong to the text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dataprep.io.errors import UserError
from dataprep.text.learned_tokens import add_learned_tokens, load_tokens
from eval.sampling.stage_sampler import LoadedStage
from train.models.adapters.files import Adapter, load_adapter, match_layers, merge_adapter

if TYPE_CHECKING:
    from torch import Tensor

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
    choices: Sequence[AdapterChoice], stages: Sequence[LoadedStage], load_encoder: Callable[[], Any]
) -> list[AdapterChoice]:
    """Merges adapters into the models in place, one after the other; returns the choices with their stages.

    ``load_encoder`` returns the text encoder, each time the same, with its network as ``model``, and its tokenizer. It
    is called only for an adapter that fits no stage. Raises UserError for one that fits nothing, or several stages.
    """
    models = {stage.entry.name: stage.model for stage in stages}
    return [_apply(choice, models, load_encoder) for choice in choices]


def _apply(choice: AdapterChoice, stages: dict[str, Any], load_encoder: Callable[[], Any]) -> AdapterChoice:
    if (vectors := load_tokens(choice.path)) is not None:
        return _apply_tokens(choice, vectors, load_encoder)
    adapter, names = load_adapter(choice.path), [*stages, ENCODER]
    if choice.stage is not None and choice.stage not in names:
        raise UserError(f"adapter {choice.path}: there is no stage {choice.stage!r}; take one of {', '.join(names)}")
    candidates = [choice.stage] if choice.stage is not None else names
    models = {name: stages[name] for name in candidates if name != ENCODER}
    fitting = [name for name, model in models.items() if match_layers(adapter, model.state_dict())]
    if not fitting and ENCODER in candidates and hasattr(encoder := load_encoder(), "model"):
        models[ENCODER] = encoder.model
        fitting = [ENCODER] if match_layers(_for_part(adapter, ENCODER), encoder.model.state_dict()) else []
    if len(fitting) != 1:
        problem = f"fits {' and '.join(fitting)}" if fitting else f"fits none of {', '.join(candidates)}"
        remedy = "name one as STAGE=FILE" if fitting else "give one that was trained on this model"
        raise UserError(f"adapter {choice.path}: {problem}; {remedy}")
    model = models[fitting[0]]
    model.load_state_dict(merge_adapter(model.state_dict(), _for_part(adapter, fitting[0]), choice.weight))
    return replace(choice, stage=fitting[0])


def _apply_tokens(
    choice: AdapterChoice, vectors: Mapping[str, Tensor], load_encoder: Callable[[], Any]
) -> AdapterChoice:
    """Adds learned tokens to the text encoder."""
    if choice.stage not in (None, ENCODER) or choice.weight != 1:
        asked = f"stage {choice.stage}" if choice.stage not in (None, ENCODER) else f"weight {choice.weight:g}"
        raise UserError(f"adapter {choice.path}: has learned tokens of the text encoder; leave {asked} out")
    add_learned_tokens(load_encoder(), vectors)
    return replace(choice, stage=ENCODER)


def _for_part(adapter: Adapter, name: str) -> Adapter:
    """Returns the adapter without a text decoder's layers where the text encoder is meant, which has none."""
    if name != ENCODER:
        return adapter
    pairs = {layer: pair for layer, pair in adapter.pairs.items() if not layer.startswith("decoder.")}
    return replace(adapter, pairs=pairs, scales={layer: adapter.scales[layer] for layer in pairs})
