"""Config of scoring: the CLIP similarity of a pair, and the heads over its image features. Light: loads no torch."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dataprep.io.config import Config
from dataprep.io.pack_format import IMAGE_FEATURES, TEXT_FEATURES
from dataprep.io.scorer_heads import HEADS


class HeadConfig(Config):
    """Weights and form of one head."""

    path: str = Field(description="weights of its linear layers: .safetensors, or a torch state dict (.pt, .pth)")
    activation: Literal["none", "relu", "gelu"] = Field(
        default="none", description="between the layers; LAION's aesthetic predictor has none"
    )
    output: Literal["none", "sigmoid"] = Field(
        default="none", description="sigmoid: the last layer gives a logit, the column a probability"
    )


def _order_heads(heads: dict[str, HeadConfig]) -> dict[str, HeadConfig]:
    """Returns the heads in the order of `HEADS`, which is that of the columns; raises ValueError for an unknown one."""
    if unknown := sorted(set(heads).difference(HEADS)):
        raise ValueError(f"head {unknown[0]!r} is unknown; take one of {', '.join(HEADS)}")
    return {name: heads[name] for name in HEADS if name in heads}


def _check_labels(labels: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Raises ValueError for a question that cannot name a column, or that has no choice."""
    for question, choices in labels.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", question):
            raise ValueError(f"{question!r}: a question is named with lower-case letters, digits and _")
        if len(set(choices)) < max(2, len(choices)) or not all(choice.strip() for choice in choices):
            raise ValueError(f"{question}: give two or more different labels, such as [a photo, a drawing]")
    return labels


LabelsConfig = Annotated[dict[str, Annotated[tuple[str, ...], Field(strict=False)]], AfterValidator(_check_labels)]
HeadsConfig = Annotated[dict[str, HeadConfig], AfterValidator(_order_heads)]


class ScoreConfig(Config):
    """Columns that are computed per pair besides the CLIP similarity."""

    embeddings: bool = Field(
        default=False,
        description="keep the CLIP features of each image, float16; for select.near_duplicate_cosine and pack.features",
    )
    text_embeddings: bool = Field(
        default=False, description="keep the CLIP features of each caption too, float16; for pack.features"
    )
    heads: HeadsConfig = Field(
        default={},
        description="networks over the CLIP features of an image, by name: "
        + "; ".join(f"{name}: {head.predicts}" for name, head in HEADS.items()),
    )
    labels: LabelsConfig = Field(
        default={},
        description="questions with their labels, such as {medium: [a photo, a drawing]}; each image gets the label "
        "whose text its CLIP features are nearest to, for the audit of the data card",
    )

    def feature_columns(self) -> tuple[str, ...]:
        """Returns the columns of features that are kept."""
        kept = {IMAGE_FEATURES: self.embeddings, TEXT_FEATURES: self.text_embeddings}
        return tuple(name for name, is_kept in kept.items() if is_kept)
