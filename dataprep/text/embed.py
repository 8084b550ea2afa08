"""Encodes the captions of a pack shard as stored embeddings, row-aligned with it, at their true length.

Legend: T tokens of a batch (captions concatenated), D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.io.parquet import read_table, write_table
from dataprep.text.config import EmbedConfig
from dataprep.text.embedding_codec import dequantise, quantise
from dataprep.text.encoder import Encoded, TextEncoder

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


LOW_COSINE = 0.999  # tokens stored with a lower cosine are counted


def load_encoder(path_or_name: str, config: EmbedConfig, device: str = "cpu") -> TextEncoder:
    """Loads the encoder that ``config`` describes, see `TextEncoder.from_folder`."""
    return TextEncoder.from_folder(path_or_name, config.dtype, config.max_length, device, config.token_budget)


@dataclass
class StoredEmbeddings:
    """Encoded captions, and their error against the encoder's output."""

    rows: dict[int, tuple[int, bytes, bytes | None]] = field(default_factory=dict)  # caption -> length, values, scales
    error: float = 0.0  # sum over captions of the relative error (Frobenius norm)
    low: int = 0  # tokens below LOW_COSINE

    def add(self, batch: Encoded, codec: str) -> None:
        """Adds the captions of a batch."""
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

    An image with k captions has k rows; row groups are those of the pack shard. The file is a pure function of the
    pack shard, the encoder and ``config``.

    Returns:
        Counters: rows (of the pack shard), captions, distinct, tokens (stored), truncated (distinct captions cut to
        max_length), codec_error_ppm_sum (sum of the relative errors of distinct captions, parts per million),
        codec_low_tokens (tokens of distinct captions stored at a cosine below 0.999).
    """
    pack = read_table(pack_path, "pack", ["key", "captions"])
    texts = pack["captions"].to_pylist()
    captions = [caption for several in texts for caption in several]
    distinct = list(dict.fromkeys(captions))
    ids, truncated = encoder.tokenize(distinct)
    stored = StoredEmbeddings()
    with ThreadPoolExecutor(1) as pool:  # quantises one batch while the encoder computes the next
        for _ in _yield_one_behind(pool.submit(stored.add, batch, config.codec) for batch in encoder.batches(ids)):
            pass
    empty = (
        0,
        b"",
        None if config.codec == "float16" else b"",
    )  # an empty caption and a tokenizer without an end token
    place = {caption: index for index, caption in enumerate(distinct)}
    rows = [stored.rows.get(place[caption], empty) for caption in captions]
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
    write_embeddings(table, out_path, config, _split_row_groups(pack_path, len(rows)))
    counted = {"rows": pack.num_rows, "captions": len(captions), "distinct": len(distinct), "truncated": truncated}
    counted |= {"tokens": sum(length for length, _, _ in rows), "codec_low_tokens": stored.low}
    return counted | {"codec_error_ppm_sum": round(stored.error * 1e6)}


def write_embeddings(table: pa.Table, path: str | Path, config: EmbedConfig, row_groups: list[int]) -> None:
    """Writes an embedding shard, with page checksums to detect damage."""
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


def _split_row_groups(pack_path: str | Path, rows: int) -> list[int]:
    """Returns the rows of each row group: an image's captions are in the row group of the image."""
    metadata = pq.read_metadata(pack_path)
    images = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    times = rows // max(1, sum(images))
    return [count * times for count in images if count]


def _yield_one_behind(futures: Iterator[Future[Any]]) -> Iterator[Any]:
    """Yields each future's result after the next future has been created."""
    before = None
    for future in futures:
        if before is not None:
            yield before.result()
        before = future
    if before is not None:
        yield before.result()
