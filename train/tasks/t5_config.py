"""Config of the `t5` task. Light: loads no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dataprep.io.config import Config
from train.config import TrainConfig


class T5TaskConfig(Config):
    """A small T5 and the corruption of its text."""

    vocabulary: int = Field(2000, ge=300, description="largest number of token types, without sentinels")
    tokenizer_captions: int = Field(1_000_000, ge=1, description="largest number of captions to train the tokenizer on")
    sentinels: int = Field(32, ge=1, description="sentinel tokens, the largest number of masked spans per caption")
    d_model: int = Field(128, ge=8, description="width of the embeddings")
    heads: int = Field(4, ge=1, description="attention heads")
    d_ff: int = Field(256, ge=8, description="width of the feed-forward layers")
    layers: int = Field(3, ge=1, description="encoder layers")
    decoder_layers: int = Field(1, ge=1, description="decoder layers; the decoder is not exported")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the network")
    max_tokens: int = Field(128, ge=8, description="tokens per caption in pretraining; longer ones are cut")
    target: Literal["spans", "whole"] = Field(
        "whole", description="target of the decoder: the masked spans, or the whole caption"
    )
    noise_density: float = Field(0.3, gt=0, lt=1, description="share of masked tokens; high, since captions are short")
    mean_span: float = Field(1.5, ge=1, description="mean length of a masked span, in tokens")

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of heads={self.heads}; change one")
        return self


class T5TrainingConfig(T5TaskConfig, TrainConfig):
    """A small T5 pretrained on the run's own captions: keys of the model and of the training loop."""

    task: Literal["t5"] = Field("t5", description="what is trained")
