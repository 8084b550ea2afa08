"""Config of stored text embeddings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dataprep.io.config import Config

TOKENS_FILE = "learned_tokens.safetensors"  # beside a tuned encoder, see `dataprep.text.learned_tokens`
EncoderDtype = Literal["auto", "float32", "bfloat16", "float16"]


class EmbedConfig(Config):
    """How captions are encoded and stored."""

    codec: Literal["float16", "int8"] = Field(default="float16", description="int8 halves the bytes at cosine 0.999")
    compression: Literal["none", "zstd"] = Field(default="zstd", description="compression of the stored values")
    zstd_level: int = Field(default=1, ge=1, le=19, description="zstd level")
    max_length: int = Field(
        default=256,
        ge=2,
        description="maximum tokens per caption (Imagen: 256), at most what the model can read; the rest is cut",
    )
    dtype: EncoderDtype = Field(
        default="auto",
        description="dtype of the encoder; auto: bfloat16 on GPUs, float32 on CPUs; T5 overflows in float16",
    )
    token_budget: int = Field(default=8192, ge=1, description="maximum tokens per batch, including padding")
    pad: bool = Field(
        default=False,
        description="store the encoder's output at all max_length places, padding too, as DeepFloyd IF reads it",
    )
    lowercase: bool = Field(default=False, description="encode captions and prompts in lower case, as DeepFloyd IF")
