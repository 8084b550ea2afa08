"""Encodes the captions of a pack shard as stored embeddings, row-aligned with it, at their true length.

Legend: T tokens of a batch (captions concatenated), D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.io.parquet import read_table, write_table
from dataprep.text.config import EmbedConfig
from dataprep.text.device_quantise import QuantisedTokens, finish_quantise, start_quantise
from dataprep.text.embedding_codec import EMPTY_TEXT_KEY, dequantise, pack_embedding, quantise
from dataprep.text.encoder import Encoded, EncodedTokens, TextEncoder

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
    return TextEncoder.from_folder(
        path_or_name, config.dtype, config.max_length, device, config.token_budget, config.pad, config.lowercase
    )


class TokenSums(NamedTuple):
    """Sums over the channels of each token, (T,): of what was encoded, and of what its stored form decodes to."""

    size_T: np.ndarray  # squares
    decoded_T: np.ndarray  # squares of the decoded
    product_T: np.ndarray  # of both
    off_T: np.ndarray  # squares of the difference


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
        size_T = np.einsum("td,td->t", batch.tokens_TD, batch.tokens_TD)
        decoded_T = np.einsum("td,td->t", decoded_TD, decoded_TD)
        product_T = np.einsum("td,td->t", decoded_TD, batch.tokens_TD)
        decoded_TD -= batch.tokens_TD
        off_T = np.einsum("td,td->t", decoded_TD, decoded_TD)
        sums = TokenSums(size_T, decoded_T, product_T, off_T)
        self._add_quantised(batch.indices, batch.lengths, stored_TD, scale_T, sums)

    def add_from_device(self, batch: EncodedTokens, started: QuantisedTokens, codec: str) -> None:
        """Adds the captions of a batch that its device quantises; waits for that."""
        stored_TD, scale_T = finish_quantise(started, codec)
        size_T, decoded_T, product_T = started.sums_3T.wait().numpy()
        sums = TokenSums(size_T, decoded_T, product_T, started.errors_T.wait().numpy())
        self._add_quantised(batch.indices, batch.lengths, stored_TD, scale_T, sums)

    def _add_quantised(
        self, indices: list[int], lengths: list[int], stored_TD: np.ndarray, scale_T: np.ndarray | None, sums: TokenSums
    ) -> None:
        starts = np.cumsum([0, *lengths])
        self.low += int((sums.product_T < LOW_COSINE * np.sqrt(sums.size_T * sums.decoded_T)).sum())
        off, size = np.add.reduceat(sums.off_T, starts[:-1]), np.add.reduceat(sums.size_T, starts[:-1])
        self.error += float(np.sqrt(off / np.maximum(size, np.finfo(np.float32).tiny)).sum())
        for index, start, stop in zip(indices, starts[:-1], starts[1:], strict=True):
            scale = None if scale_T is None else scale_T[start:stop].tobytes()
            self.rows[index] = (int(stop - start), stored_TD[start:stop].tobytes(), scale)


def embed_shard(
    pack_path: str | Path, out_path: str | Path, encoder: TextEncoder, config: EmbedConfig
) -> dict[str, int]:
    """Encodes the captions of one pack shard, each distinct one once, and writes them row-aligned with it.

    An image with k captions has k rows; row groups are those of the pack shard. With padding the file's metadata holds
    the embedding of the empty text, which stands for no caption (`EMPTY_TEXT_KEY`). The file is a pure function of the
    pack shard, the encoder and ``config``; with ``dtype`` auto also of whether the encoder is on a GPU.

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
        works = _encode_batches(encoder, ids, config.codec, stored)
        for _ in _yield_one_behind(pool.submit(work) for work in works):
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
    if config.pad:
        table = table.replace_schema_metadata({EMPTY_TEXT_KEY: pack_embedding(encoder.encode([""])[0], config.codec)})
    write_embeddings(table, out_path, config, _split_row_groups(pack_path, len(rows)))
    counted = {"rows": pack.num_rows, "captions": len(captions), "distinct": len(distinct), "truncated": truncated}
    counted |= {"tokens": sum(length for length, _, _ in rows), "codec_low_tokens": stored.low}
    return counted | {"codec_error_ppm_sum": round(stored.error * 1e6)}


def _encode_batches(
    encoder: TextEncoder, ids: list[list[int]], codec: str, stored: StoredEmbeddings
) -> Iterator[Callable[[], None]]:
    """Yields, for each batch given to the encoder, what is left to do on the CPU."""
    if not quantises_on_device(encoder.device):
        for batch in encoder.batches(ids):
            yield partial(stored.add, batch, codec)
        return
    for tokens in encoder.device_batches(ids):
        yield partial(stored.add_from_device, tokens, start_quantise(tokens.tokens_TD, codec), codec)


def quantises_on_device(device: str) -> bool:
    """Returns whether embeddings are quantised where they are computed: fewer bytes to copy, none for the CPU to do."""
    return device != "cpu"


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
