"""Config of the weights that a training begins from. Light: loads no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from dataprep.io.config import Config

Patterns = tuple[str, ...]


class InitConfig(Config):
    """Weights to begin from, in place of random ones. ``init: SOURCE`` is short for ``init: {source: SOURCE}``."""

    source: str = Field(
        description="a run (RUN, RUN@FINGERPRINT, RUN:STAGE), an exported folder, a checkpoint, a safetensors file, "
        "or a folder or hub name (hf://NAME) in diffusers' or transformers' layout; see docs/finetuning.md"
    )
    weights: Literal["ema", "raw"] = Field(
        "ema", description="of a run or checkpoint: moving average, or those of the last update"
    )
    missing: Patterns = Field(
        (), strict=False, description="tensors of the model (patterns) that the source may lack; they begin random"
    )
    unexpected: Patterns = Field((), strict=False, description="tensors of the source (patterns) that may be left out")
    reshaped: Patterns = Field(
        (), strict=False, description="tensors (patterns) that may have another shape there; they begin random"
    )
    licence: str | None = Field(None, description="licence of the weights, for the model card, if they name none")


def _from_source(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


Init = Annotated[InitConfig, BeforeValidator(_from_source, json_schema_input_type=str | InitConfig)]
