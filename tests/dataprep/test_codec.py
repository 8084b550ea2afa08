from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dataprep.codec import CODECS, decode, encode
from dataprep.embed import SCHEMA, EmbedConfig, write_embeddings


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("length", [0, 1, 7])
def test_round_trip(codec, length):
    values = np.random.default_rng(0).normal(size=(length, 64)).astype(np.float32)
    data, scale = encode(values, codec)
    back = decode(data, scale, length, 64, codec)
    assert back.shape == values.shape and back.dtype == np.float32
    if length:
        cosine = (back * values).sum(1) / np.linalg.norm(back, axis=1) / np.linalg.norm(values, axis=1)
        assert cosine.min() > 0.9999 if codec == "float16" else cosine.min() > 0.999
        assert len(data) == values.size * (2 if codec == "float16" else 1)


def test_int8_error_is_within_half_a_scale_and_zeros_stay_zero():
    values = np.array([[1e-30, -1e-30, 0.0], [0, 0, 0], [1e30, 3.0, -1e30], [1e-42, 0, 0]], np.float32)
    data, scale = encode(values, "int8")
    back = decode(data, scale, 4, 3, "int8")
    assert (np.abs(back - values) <= np.frombuffer(scale, "<f4")[:, None] * 0.501).all()
    assert (back[1] == 0).all()


def test_errors():
    values = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="float16, int8"):
        encode(values, "int4")
    with pytest.raises(ValueError, match="shape"):
        encode(values[0], "int8")
    with pytest.raises(ValueError, match="NaN"):
        encode(values * np.nan, "int8")
    with pytest.raises(ValueError, match="use codec int8"):
        encode(values * 1e6, "float16")
    with pytest.raises(ValueError, match="do not hold"):
        decode(b"123", None, 2, 3, "float16")
    with pytest.raises(ValueError, match="scales"):
        decode(b"123456", None, 2, 3, "int8")
    with pytest.raises(ValueError, match="float16, int8"):
        decode(b"", None, 0, 3, "nf4")


@pytest.mark.parametrize("codec", CODECS)
def test_the_documented_example_reads_what_is_written(codec, tmp_path):
    text = (Path(__file__).resolve().parents[2] / "docs" / "data_format.md").read_text()
    example = text.partition("## Embeddings without our code")[2].partition("```python\n")[2].partition("```")[0]
    values = np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)
    data, scale = encode(values, codec)
    row = {"key": "a", "caption": "b", "length": 7, "dim": 16, "codec": codec, "embedding": data, "scale": scale}
    path = tmp_path / "00000.parquet"
    write_embeddings(pa.Table.from_pylist([row], schema=SCHEMA), path, EmbedConfig(codec=codec), [1])
    found = {}
    exec(example.replace("runs/demo/stages/embed/<fingerprint>/00000.parquet", str(path)), found)
    np.testing.assert_allclose(found["tokens"], values, atol=0.02)
    assert pd.read_parquet(path)["embedding"][0] == data
