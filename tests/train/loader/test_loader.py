"""Batches: every row once per epoch, correct pixels, crops and embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataprep.io.errors import UserError
from dataprep.io.pack_format import FEATURES
from tests.helpers.packs import make_embedding, make_feature, make_image, write_embeddings, write_pack
from train.loader.config import LoaderConfig
from train.loader.loader import CaptionLoader, Loader
from train.loader.reader import Reader
from train.loader.shard_index import index_shards

COLUMNS = ("pixels_16", "pixels_64")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """Two pack shards and their embeddings, one float16 and one int8."""
    folder = tmp_path_factory.mktemp("shards")
    pack = [write_pack(folder / f"p{i}.parquet", *span) for i, span in enumerate([(0, 20), (20, 33)])]
    embed = [write_embeddings(folder / "e0.parquet", 0, 20), write_embeddings(folder / "e1.parquet", 20, 33, "int8")]
    return pack, embed


@pytest.mark.parametrize("rows", [1, 5, 12, 31])
def test_every_row_once_per_epoch(rows: int) -> None:
    loader = CaptionLoader([str(row) for row in range(rows)], 3, 4)
    stream = [key for step in range(rows + 2) for key in loader.batch(step)["key"]]
    epochs = [stream[start : start + rows] for start in range(0, 4 * rows, rows)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == rows for epoch in epochs)
    if rows > 5:
        assert epochs[0] != epochs[1]
    assert loader.batch(1)["key"] == stream[4:8]  # going back gives the same


def test_pixels_text_and_split(shards: tuple[list[str], list[str]]) -> None:
    loader = Loader(*shards, COLUMNS, "train", 0, 8)
    assert len(loader) == 33 - 4
    seen = set()
    for step in range(4):
        batch = loader.batch(step)
        assert batch["text_BLD"].dtype == torch.float32 and batch["text_mask_BL"].dtype == torch.bool
        longest = int(batch["text_mask_BL"].sum(1).max())
        assert batch["text_BLD"].shape == (8, longest, 8)
        for row, key in enumerate(batch["key"]):
            index = int(key)
            seen.add(index)
            for size in (16, 64):
                assert np.array_equal(batch[f"pixels_{size}"][row], make_image(index, size))
            length = 1 + index % 5
            assert batch["text_mask_BL"][row].tolist() == [at < length for at in range(longest)]
            text = batch["text_BLD"][row]
            np.testing.assert_allclose(text[:length], make_embedding(index), atol=0.02)
            assert not text[length:].any()
    assert seen == {index for index in range(33) if index % 8 != 7}
    assert len(Loader(shards[0], None, (), None, 0, 1)) == 33


def test_crops_agree_between_resolutions(shards: tuple[list[str], list[str]]) -> None:
    loader = Loader(shards[0], None, COLUMNS, None, 0, 33, crop=32)
    batch, corners = loader.batch(0), set()
    assert batch["pixels_16"].shape == (33, 8, 8, 3) and batch["pixels_64"].shape == (33, 32, 32, 3)
    for row, key in enumerate(batch["key"]):
        small, large = make_image(int(key), 16), make_image(int(key), 64)
        found = [
            (y, x)
            for y in range(9)
            for x in range(9)
            if np.array_equal(batch["pixels_16"][row], small[y : y + 8, x : x + 8])
            and np.array_equal(batch["pixels_64"][row], large[4 * y : 4 * y + 32, 4 * x : 4 * x + 32])
        ]
        assert found
        corners.add(found[0])
    assert len(corners) > 5
    assert torch.equal(loader.batch(0)["pixels_64"], batch["pixels_64"])
    assert not torch.equal(loader.batch(1)["pixels_64"], batch["pixels_64"])


def test_invalid_arguments_are_refused(shards: tuple[list[str], list[str]], tmp_path: Path) -> None:
    pack, embed = shards
    cases: list[tuple[tuple[Any, ...], str]] = [
        (([], None, COLUMNS, "train", 0, 8), "no pack shards"),
        ((pack, None, ("pixels_32",), "train", 0, 8), "no column pixels_32 .*pixels_16, pixels_64"),
        ((pack, None, ("caption",), "train", 0, 8), "must end in its resolution"),
        ((pack, None, COLUMNS, "test", 0, 8), "no row of split 'test' .*train, validation"),
        ((pack, embed[::-1], COLUMNS, "train", 0, 8), "not the same rows in the same order"),
        ((pack, None, COLUMNS, "train", 0, 8, 30), "crop=30: give a multiple of 4"),
        ((pack, None, COLUMNS, "train", 0, 8, 128), "crop=128"),
        ((pack, None, COLUMNS, "train", 0, 0), "batch_size=0"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            Loader(*arguments)
    with pytest.raises(UserError, match="0 rows"):
        CaptionLoader([], 0, 1)
    with pytest.raises(UserError, match="multiple of 3"):
        CaptionLoader(["a"], 0, 8).batch(0, 0, 3)


def test_vectors_come_with_their_rows(tmp_path: Path) -> None:
    packs = [
        write_pack(tmp_path / f"p{i}", *span, rows=7, features=[*FEATURES])
        for i, span in enumerate([(0, 20), (20, 33)])
    ]
    embeds = [write_embeddings(tmp_path / f"e{i}", *span, rows=7) for i, span in enumerate([(0, 20), (20, 33)])]
    index = index_shards(packs, embeds, COLUMNS[:1], vectors=[*FEATURES])
    loader = Loader.from_reader(Reader(index, LoaderConfig()), "train", 0, 8)
    for step in range(4):
        batch = loader.batch(step)
        for name in FEATURES:
            wanted = np.stack([make_feature(int(key), name) for key in batch["key"]])
            assert batch[name].dtype == torch.float16 and np.array_equal(batch[name].numpy(), wanted)
