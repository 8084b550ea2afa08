"""Embedding shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprep.io.parquet import read_schema, read_table, write_table
from dataprep.text import embedding_codec
from dataprep.text.config import EmbedConfig
from dataprep.text.embed import StoredEmbeddings, embed_shard, load_encoder
from dataprep.text.encoder import Encoded

CAPTIONS = ["a red circle", "a blue square left of a red circle", "circle", "a red circle"]


@pytest.mark.parametrize("name", embedding_codec.CODECS)
def test_embed_shard_is_row_aligned_and_decodes(t5: str, tmp_path: Path, name: Any) -> None:
    pack = pa.table({"key": ["a", "b", "c", "d"], "captions": [[caption] for caption in CAPTIONS]})
    write_table(pack, tmp_path / "p.parquet", "pack")
    config = EmbedConfig(codec=name, max_length=8)
    encoder = load_encoder(t5, config)
    counters = embed_shard(tmp_path / "p.parquet", tmp_path / "e.parquet", encoder, config)
    error = counters.pop("codec_error_ppm_sum") / 3
    assert counters == {"rows": 4, "captions": 4, "distinct": 3, "tokens": 18, "truncated": 1, "codec_low_tokens": 0}
    assert 0 < error < (1000 if name == "float16" else 20_000)
    rows = read_table(tmp_path / "e.parquet", "embeddings").to_pylist()
    assert [(row["key"], row["caption"]) for row in rows] == list(zip("abcd", CAPTIONS, strict=True))
    assert [row["length"] for row in rows] == [4, 8, 2, 4]
    for row, expected in zip(rows, encoder.encode(CAPTIONS), strict=True):
        decoded = embedding_codec.decode_embedding(
            row["embedding"], row["scale"], row["length"], row["dim"], row["codec"]
        )
        cosine = (decoded * expected).sum(1) / np.linalg.norm(decoded, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosine.min() > 0.999


def test_several_captions_per_image_are_rows_of_its_row_group(t5: str, tmp_path: Path) -> None:
    several = [["a red circle", "circle"], ["a red circle", "a blue square"], ["of", "of"]]
    columns = {"key": ["a", "b", "c"], "caption": [texts[0] for texts in several], "captions": several}
    write_table(pa.table(columns), tmp_path / "p.parquet", "pack", [2, 1])
    config = EmbedConfig()
    counters = embed_shard(tmp_path / "p.parquet", tmp_path / "e.parquet", load_encoder(t5, config), config)
    assert (counters["captions"], counters["distinct"]) == (6, 4)
    table = read_table(tmp_path / "e.parquet", "embeddings")
    assert table["key"].to_pylist() == list("aabbcc")
    assert table["caption"].to_pylist() == [text for texts in several for text in texts]
    metadata = pq.read_metadata(tmp_path / "e.parquet")
    assert [metadata.row_group(at).num_rows for at in range(2)] == [4, 2]


def test_tokens_that_int8_stores_badly_are_counted() -> None:
    tokens = np.full((3, 512), 0.1, np.float32)
    tokens[1, 0] = 26.0  # one channel so large that the others round to nothing
    stored = StoredEmbeddings()
    stored.add(Encoded([0, 1], [1, 2], tokens), "int8")
    lost = np.linalg.norm(tokens[1, 1:]) / np.linalg.norm(tokens[1:])
    assert stored.low == 1 and abs(stored.error - lost) < 1e-3
    assert [length for length, _, _ in stored.rows.values()] == [1, 2]


def test_embedding_an_empty_shard(t5: str, tmp_path: Path) -> None:
    empty = pa.table({"key": pa.array([], pa.string()), "captions": pa.array([], pa.list_(pa.string()))})
    write_table(empty, tmp_path / "p.parquet", "pack")
    config = EmbedConfig()
    assert (
        embed_shard(tmp_path / "p.parquet", tmp_path / "e.parquet", load_encoder(t5, config), config)["captions"] == 0
    )
    assert read_table(tmp_path / "e.parquet", "embeddings").num_rows == 0


@pytest.mark.parametrize("codec", embedding_codec.CODECS)
def test_padded_shards_hold_the_embedding_of_the_empty_text(t5: str, tmp_path: Path, codec: Any) -> None:
    write_table(pa.table({"key": ["a"], "captions": [["A circle"]]}), tmp_path / "p.parquet", "pack")
    config = EmbedConfig(codec=codec, max_length=6, pad=True, lowercase=True)
    encoder = load_encoder(t5, config)
    counters = embed_shard(tmp_path / "p.parquet", tmp_path / "e.parquet", encoder, config)
    assert counters["tokens"] == 6
    packed = (read_schema(tmp_path / "e.parquet", "embeddings").metadata or {})[embedding_codec.EMPTY_TEXT_KEY]
    empty, expected = embedding_codec.unpack_embedding(packed), encoder.encode([""])[0]
    assert empty.shape == (6, 32)
    np.testing.assert_allclose(empty, expected, atol=float(np.abs(expected).max()) / 100)
    embed_shard(tmp_path / "p.parquet", tmp_path / "u.parquet", load_encoder(t5, EmbedConfig()), EmbedConfig())
    assert embedding_codec.EMPTY_TEXT_KEY not in (read_schema(tmp_path / "u.parquet", "embeddings").metadata or {})
