"""Captions as stored, gathered without padding and unpacked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dataprep.text.embedding_codec import dequantise, quantise
from train.loader.feed import map_tensors
from train.loader.row_group import TextColumn
from train.loader.stored_text import FIXED_LENGTHS, StoredText, gather_text, padded_length, unpack_text

WIDTH = 6


def make_column(lengths: list[int], codec: str, seed: int = 0) -> TextColumn:
    values = np.random.default_rng(seed).standard_normal((sum(lengths), WIDTH)).astype(np.float32)
    return TextColumn(*quantise(values, codec), np.cumsum([0, *lengths]))


def expected_tokens(column: TextColumn, row: int) -> np.ndarray:
    start, stop = column.span(row)
    return dequantise(column.values_TD[start:stop], None if column.scale_T is None else column.scale_T[start:stop])


def on_device(text: StoredText, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Unpacks as on a device, on the CPU."""
    monkeypatch.setattr("train.loader.stored_text.unpacks_by_row", lambda device: False)
    return unpack_text(text)


@pytest.mark.parametrize("codecs", [("int8",), ("float16",), ("int8", "float16")], ids=str)
def test_every_caption_comes_back_padded_with_zeros(codecs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [make_column([3, 0, 5, 1], codec, seed) for seed, codec in enumerate(codecs)]
    rows = [(column, row) for row in (2, 1, 0, 3, 2) for column in columns]
    text = gather_text(rows)
    assert text.longest == 5 and len(text.values_TD) == sum(
        5 * (row == 2) + 3 * (row == 0) + (row == 3) for _, row in rows
    )
    kinds: dict[tuple[str, ...], torch.dtype] = {("int8",): torch.int8, ("float16",): torch.float16}
    assert text.values_TD.dtype == kinds.get(codecs, torch.float32)
    assert (text.scale_T is not None) is (codecs == ("int8",))
    for length, (text_BLD, mask_BL) in ((5, unpack_text(text)), (FIXED_LENGTHS[0], on_device(text, monkeypatch))):
        assert text_BLD.shape == (len(rows), length, WIDTH) and text_BLD.dtype == torch.float32
        for (column, row), text_LD, mask_L in zip(rows, text_BLD.numpy(), mask_BL, strict=True):
            tokens = expected_tokens(column, row)
            assert np.array_equal(text_LD[: len(tokens)], tokens) and not text_LD[len(tokens) :].any()
            assert mask_L.tolist() == [at < len(tokens) for at in range(length)]


def test_captions_without_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    text = gather_text([(make_column([0, 0], "int8"), row) for row in (0, 1)])
    for length, (text_BLD, mask_BL) in ((1, unpack_text(text)), (FIXED_LENGTHS[0], on_device(text, monkeypatch))):
        assert text_BLD.shape == (2, length, WIDTH) and not text_BLD.any() and not mask_BL.any()


def test_unpacking_asks_the_device_for_nothing() -> None:
    text = gather_text([(make_column([3, 5], "int8"), row) for row in (0, 1)])
    text_BLD, mask_BL = unpack_text(
        map_tensors({"text": text}, lambda value: value.to("meta"))["text"]
    )  # a meta tensor cannot be read
    assert text_BLD.is_meta and text_BLD.shape == (2, FIXED_LENGTHS[0], WIDTH) and mask_BL.is_meta


@pytest.mark.parametrize(("longest", "length"), [(1, 16), (16, 16), (17, 32), (129, 192), (256, 256), (257, 512)])
def test_lengths_are_few(longest: int, length: Any) -> None:
    assert padded_length(longest) == length
