from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dataprep.text.config import EmbedConfig
from dataprep.text.embed import SCHEMA, write_embeddings
from dataprep.text.embedding_codec import CODECS, decode_embedding, encode_embedding
from tests.helpers.paths import ROOT


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("length", [0, 1, 7])
def test_round_trip(codec: str, length: Any) -> None:
    values = np.random.default_rng(0).normal(size=(length, 64)).astype(np.float32)
    data, scale = encode_embedding(values, codec)
    back = decode_embedding(data, scale, length, 64, codec)
    assert back.shape == values.shape and back.dtype == np.float32
    if length:
        cosine = (back * values).sum(1) / np.linalg.norm(back, axis=1) / np.linalg.norm(values, axis=1)
        assert cosine.min() > 0.9999 if codec == "float16" else cosine.min() > 0.999
        assert len(data) == values.size * (2 if codec == "float16" else 1)


def test_int8_error_is_within_half_a_scale_and_zeros_stay_zero() -> None:
    values = np.array([[1e-30, -1e-30, 0.0], [0, 0, 0], [1e30, 3.0, -1e30], [1e-42, 0, 0]], np.float32)
    data, scale = encode_embedding(values, "int8")
    assert scale is not None
    back = decode_embedding(data, scale, 4, 3, "int8")
    assert (np.abs(back - values) <= np.frombuffer(scale, "<f4")[:, None] * 0.501).all()
    assert (back[1] == 0).all()


def test_errors() -> None:
    values = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="float16, int8"):
        encode_embedding(values, "int4")
    with pytest.raises(ValueError, match="shape"):
        encode_embedding(values[0], "int8")
    with pytest.raises(ValueError, match="NaN"):
        encode_embedding(values * np.nan, "int8")
    with pytest.raises(ValueError, match="use codec int8"):
        encode_embedding(values * 1e6, "float16")
    with pytest.raises(ValueError, match="do not hold"):
        decode_embedding(b"123", None, 2, 3, "float16")
    with pytest.raises(ValueError, match="scales"):
        decode_embedding(b"123456", None, 2, 3, "int8")
    with pytest.raises(ValueError, match="float16, int8"):
        decode_embedding(b"", None, 0, 3, "nf4")


@pytest.mark.parametrize("codec", CODECS)
def test_the_documented_example_reads_what_is_written(codec: Any, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "data_format.md").read_text()
    example = text.partition("## Embeddings without our code")[2].partition("```python\n")[2].partition("```")[0]
    values = np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)
    data, scale = encode_embedding(values, codec)
    row = {"key": "a", "caption": "b", "length": 7, "dim": 16, "codec": codec, "embedding": data, "scale": scale}
    path = tmp_path / "00000.parquet"
    write_embeddings(pa.Table.from_pylist([row], schema=SCHEMA), path, EmbedConfig(codec=codec), [1])
    found: dict[str, Any] = {}
    exec(example.replace("runs/demo/stages/embed/<fingerprint>/00000.parquet", str(path)), found)
    np.testing.assert_allclose(found["tokens"], values, atol=0.02)
    assert pd.read_parquet(path)["embedding"][0] == data
