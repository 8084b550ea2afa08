"""Captions of a pack shard to stored embeddings, row-aligned with it, each at its true length.

Legend: T tokens of a batch, one caption after another, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from dataprep.codec import dequantise, quantise
from dataprep.schema import Config, read_table, write_table
from dataprep.text import Encoded, TextEncoder

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


LOW_COSINE = 0.999  # tokens whose stored form is further off are counted


class EmbedConfig(Config):
    """How captions are encoded and stored."""

    codec: Literal["float16", "int8"] = Field(default="float16", description="int8 halves the bytes at cosine 0.999")
    compression: Literal["none", "zstd"] = Field(default="zstd", description="of the stored values")
    zstd_level: int = Field(default=1, ge=1, le=19, description="level of zstd")
    max_length: int = Field(
        default=256,
        ge=2,
        description="tokens of a caption (Imagen: 256) or as many as the model reads; the rest is cut",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="of the encoder; float16 not for T5"
    )
    token_budget: int = Field(default=8192, ge=1, description="tokens of a batch, padding included")


def load_encoder(path_or_name: str, config: EmbedConfig, device: str = "cpu") -> TextEncoder:
    """The encoder as ``config`` says; see `TextEncoder.from_folder`."""
    return TextEncoder.from_folder(path_or_name, config.dtype, config.max_length, device, config.token_budget)


@dataclass
class Stored:
    """Captions as they will be written, and how far that is from what the encoder gave."""

    rows: dict[int, tuple[int, bytes, bytes | None]] = field(default_factory=dict)  # caption -> length, values, scales
    error: float = 0.0  # sum over captions of the relative error (Frobenius norm)
    low: int = 0  # tokens below LOW_COSINE

    def add(self, batch: Encoded, codec: str) -> None:
        """Stores the captions of a batch."""
        stored_TD, scale_T = quantise(batch.tokens_TD, codec)
        decoded_TD = dequantise(stored_TD, scale_T)
        starts = np.cumsum([0, *batch.lengths])
        size_T = np.einsum("td,td->t", batch.tokens_TD, batch.tokens_TD)
        decoded_T = np.einsum("td,td->t", decoded_TD, decoded_TD)
        product_T = np.einsum("td,td->t", decoded_TD, batch.tokens_TD)
        self.low += int((product_T < LOW_COSINE * np.sqrt(size_T * decoded_T)).sum())
        decoded_TD -= batch.tokens_TD
        off_T = np.einsum("td,td->t", decoded_TD, decoded_TD)
        off, size = np.add.reduceat(off_T, starts[:-1]), np.add.reduceat(size_T, starts[:-1])
        self.error += float(np.sqrt(off / np.maximum(size, np.finfo(np.float32).tiny)).sum())
        for index, start, stop in zip(batch.indices, starts[:-1], starts[1:], strict=True):
            scale = None if scale_T is None else scale_T[start:stop].tobytes()
            self.rows[index] = (int(stop - start), stored_TD[start:stop].tobytes(), scale)


def embed_shard(
    pack_path: str | Path, out_path: str | Path, encoder: TextEncoder, config: EmbedConfig
) -> dict[str, int]:
    """Encodes the captions of one pack shard, each distinct one once, and writes them row-aligned with it.

    A picture with k captions has k rows. Row groups are those of the pack shard. The file is a pure function of
    the pack shard, the encoder and ``config``. Counters: captions, distinct, tokens (stored), truncated (distinct
    captions cut to max_length), codec_error_ppm_sum (relative error of each distinct caption, in parts per million,
    summed), codec_low_tokens (tokens of distinct captions stored at a cosine below 0.999).
    """
    listed = "captions" in pq.read_schema(pack_path).names
    pack = read_table(pack_path, "pack", ["key", "captions" if listed else "caption"])
    texts = pack["captions"].to_pylist() if listed else [[caption] for caption in pack["caption"].to_pylist()]
    captions = [caption for several in texts for caption in several]
    distinct = list(dict.fromkeys(captions))
    ids, truncated = encoder.tokenize(distinct)
    stored = Stored()
    with ThreadPoolExecutor(1) as pool:  # packs a batch while the encoder computes the next
        for _ in _one_behind(pool.submit(stored.add, batch, config.codec) for batch in encoder.batches(ids)):
            pass
    nothing = (0, b"", None if config.codec == "float16" else b"")  # a tokenizer without an end token, an empty caption
    place = {caption: index for index, caption in enumerate(distinct)}
    rows = [stored.rows.get(place[caption], nothing) for caption in captions]
    table = pa.table(
        {
            "key": [key for key, several in zip(pack["key"].to_pylist(), texts, strict=True) for _ in several],
            "caption": captions,
            "length": [length for length, _, _ in rows],
            "dim": [encoder.dim] * len(rows),
            "codec": [config.codec] * len(rows),
            "embedding": [data for _, data, _ in rows],
            "scale": [scale for _, _, scale in rows],
        },
        schema=SCHEMA,
    )
    write_embeddings(table, out_path, config, _row_groups(pack_path, len(rows)))
    counted = {"captions": len(captions), "distinct": len(distinct), "truncated": truncated}
    counted |= {"tokens": sum(length for length, _, _ in rows), "codec_low_tokens": stored.low}
    return counted | {"codec_error_ppm_sum": round(stored.error * 1e6)}


def write_embeddings(table: pa.Table, path: str | Path, config: EmbedConfig, row_groups: list[int]) -> None:
    """Writes an embedding shard; its page checksums tell damage from data."""
    values = ["embedding", "scale"]
    others = [name for name in table.column_names if name not in values]
    levels = {"embedding": config.zstd_level} if config.compression == "zstd" else None
    write_table(
        table,
        path,
        "embeddings",
        row_groups=row_groups,
        compression=dict.fromkeys(others, "zstd") | dict.fromkeys(values, config.compression),
        compression_level=levels,
        use_dictionary=["dim", "codec"],
        write_statistics=others,
        write_page_checksum=True,
    )


def _row_groups(pack_path: str | Path, rows: int) -> list[int]:
    """The rows of each row group: a picture's captions stand in the row group that the picture has."""
    metadata = pq.read_metadata(pack_path)
    pictures = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    times = rows // max(1, sum(pictures))
    return [count * times for count in pictures if count]


def _one_behind(futures: Iterator[Future[Any]]) -> Iterator[Any]:
    """The futures' results, each when the next one has been made."""
    before = None
    for future in futures:
        if before is not None:
            yield before.result()
        before = future
    if before is not None:
        yield before.result()
