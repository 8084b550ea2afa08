"""Config of the `bert` task. Light: loads no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dataprep.io.config import Config
from train.config import TrainConfig


class BertTaskConfig(Config):
    """A small BERT and the masking of its text."""

    vocabulary: int = Field(2000, ge=100, description="largest number of token types")
    tokenizer_captions: int = Field(1_000_000, ge=1, description="largest number of captions to train the tokenizer on")
    d_model: int = Field(128, ge=8, description="width of the embeddings")
    heads: int = Field(4, ge=1, description="attention heads")
    d_ff: int = Field(512, ge=8, description="width of the feed-forward layers")
    layers: int = Field(3, ge=1, description="layers")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the network")
    max_tokens: int = Field(128, ge=8, description="positions that it learns; longer captions are cut, in runs too")
    noise_density: float = Field(
        0.3, gt=0, lt=1, description="share of tokens to predict; BERT's 0.15 is for long texts, captions are short"
    )

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of heads={self.heads}; change one")
        return self


class BertTrainingConfig(BertTaskConfig, TrainConfig):
    """A small BERT pretrained on the run's own captions: keys of the model and of the training loop."""

    task: Literal["bert"] = Field("bert", description="what is trained")
