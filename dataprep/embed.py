"""Captions of a pack shard to stored embeddings, row-aligned with it, each at its true length."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from dataprep import codec
from dataprep.schema import Config, read_table, write_table
from dataprep.text import TextEncoder

SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "caption": pa.string(),
        "length": pa.int32(),
        "dim": pa.int32(),
        "codec": pa.string(),
        "embedding": pa.binary(),
        "scale": pa.binary(),
    }
)


class EmbedConfig(Config):
    """How captions are encoded and stored."""

    codec: Literal["float16", "int8"] = Field(default="float16", description="int8 halves the bytes at cosine 0.999")
    max_length: int = Field(default=256, ge=2, description="tokens of a caption, the rest is cut (Imagen: 256)")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="of the encoder; float16 not for T5"
    )
    token_budget: int = Field(default=8192, ge=1, description="tokens of a batch, padding included")
    row_group_rows: int = Field(default=128, ge=1, description="rows a row group")


def load_encoder(path_or_name: str, config: EmbedConfig, device: str = "cpu") -> TextEncoder:
    """The encoder as ``config`` says; see `TextEncoder.from_folder`."""
    return TextEncoder.from_folder(path_or_name, config.dtype, config.max_length, device, config.token_budget)


def embed_shard(
    pack_path: str | Path, out_path: str | Path, encoder: TextEncoder, config: EmbedConfig
) -> dict[str, int]:
    """Encodes the captions of one pack shard, each distinct one once, and writes them row-aligned with it.

    Counters: captions, distinct, tokens (stored), truncated (distinct captions cut to max_length),
    codec_error_ppm (the largest relative error a caption, Frobenius norm, in parts per million).
    """
    pack = read_table(pack_path, "pack", ["key", "caption"])
    captions = pack["caption"].to_pylist()
    distinct = list(dict.fromkeys(captions))
    ids, truncated = encoder.tokenize(distinct)
    stored: dict[str, tuple[int, bytes, bytes | None]] = {}
    worst = 0.0
    for caption, embedding_LD in zip(distinct, encoder.encode_ids(ids), strict=True):
        data, scale = codec.encode(embedding_LD, config.codec)
        length = len(embedding_LD)
        decoded_LD = codec.decode(data, scale, length, encoder.dim, config.codec)
        norm = float(np.linalg.norm(embedding_LD))
        worst = max(worst, float(np.linalg.norm(decoded_LD - embedding_LD)) / norm if norm else 0.0)
        stored[caption] = (length, data, scale)
    rows = [stored[caption] for caption in captions]
    table = pa.table(
        {
            "key": pack["key"].combine_chunks(),
            "caption": pack["caption"].combine_chunks(),
            "length": [length for length, _, _ in rows],
            "dim": [encoder.dim] * len(rows),
            "codec": [config.codec] * len(rows),
            "embedding": [data for _, data, _ in rows],
            "scale": [scale for _, _, scale in rows],
        },
        schema=SCHEMA,
    )
    write_table(table, out_path, "embeddings", row_group_size=config.row_group_rows)
    tokens = sum(length for length, _, _ in rows)
    counted = {"captions": len(captions), "distinct": len(distinct), "tokens": tokens, "truncated": truncated}
    return counted | {"codec_error_ppm": round(worst * 1e6)}
