"""Quantising on a device gives the bytes of the codec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dataprep.io.parquet import write_table
from dataprep.text.config import EmbedConfig
from dataprep.text.device_quantise import finish_quantise, start_quantise
from dataprep.text.embed import embed_shard, load_encoder
from dataprep.text.embedding_codec import CODECS, quantise


def make_tokens() -> np.ndarray:
    """Tokens of very different sizes, halves that round to even, zeros, and a peak that underflows."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((200, 24)).astype(np.float32) * np.exp(rng.normal(0, 2, (200, 1))).astype(np.float32)
    tokens[1] = np.arange(24) + 0.5
    tokens[1, 0] = 127
    tokens[2], tokens[3] = 0, 1e-44
    return tokens


@pytest.mark.parametrize("codec", CODECS)
def test_the_bytes_are_the_codecs(codec: str) -> None:
    tokens = make_tokens()
    expected = quantise(tokens, codec)
    found = finish_quantise(start_quantise(torch.from_numpy(tokens), codec), codec)
    assert found[0].dtype == expected[0].dtype and found[0].tobytes() == expected[0].tobytes()
    assert (found[1] is None) is (expected[1] is None)
    assert found[1] is None or expected[1] is None or found[1].tobytes() == expected[1].tobytes()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_the_codec_cannot_hold_is_refused(codec: str, bad: float) -> None:
    tokens = make_tokens()
    tokens[5, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        finish_quantise(start_quantise(torch.from_numpy(tokens), codec), codec)
    tokens[5, 3] = 70000
    if codec == "float16":
        with pytest.raises(ValueError, match="70000, above float16's 65504"):
            finish_quantise(start_quantise(torch.from_numpy(tokens), codec), codec)


@pytest.mark.parametrize("codec", CODECS)
def test_a_shard_is_the_same_file(codec: Any, t5: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a red circle", "a blue square left of a red circle", "circle", "a red circle", ""]
    pack = pa.table({"key": list("abcde"), "captions": [[text] for text in texts]})
    write_table(pack, tmp_path / "p.parquet", "pack")
    config = EmbedConfig(codec=codec, token_budget=10)
    counters = []
    for name in ("cpu", "device"):
        monkeypatch.setattr("dataprep.text.embed.quantises_on_device", lambda device, name=name: name == "device")
        counters.append(embed_shard(tmp_path / "p.parquet", tmp_path / name, load_encoder(t5, config), config))
    assert (tmp_path / "cpu").read_bytes() == (tmp_path / "device").read_bytes()
    errors = [each.pop("codec_error_ppm_sum") for each in counters]
    assert counters[0] == counters[1] and errors[0] == pytest.approx(errors[1], abs=2)
