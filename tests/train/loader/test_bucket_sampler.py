"""Batches of one aspect bucket: each sample once per epoch of its bucket, the same for any ranks and workers."""

from __future__ import annotations

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprep.io.errors import UserError
from dataprep.io.parquet import read_table, write_table
from dataprep.io.redact import redact_parquet
from dataprep.pack import pack_shard
from dataprep.pack_config import PackConfig
from dataprep.text.config import EmbedConfig
from dataprep.text.embed import SCHEMA
from dataprep.text.embed import write_embeddings as write_embedding_shard
from dataprep.text.embedding_codec import encode_embedding
from train.diffusion.config import DiffusionConfig
from train.loader.bucket_sampler import BucketOrder
from train.loader.config import LoaderConfig
from train.loader.loader import Batch, Loader, Stream
from train.loader.sampler import SampleRandom
from train.tasks.diffusion import DiffusionTask
from train.tasks.diffusion_config import DiffusionStageConfig

GROUPS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=14)
BUCKETS = {"1:1": (16, 16), "4:3": (12, 16), "3:4": (16, 12)}
PACK = PackConfig(resolutions=(16, 32), raw_up_to=16, aspects=tuple(BUCKETS), aspect_multiple=4, row_group_rows=5)
COLUMNS = ("pixels_16", "pixels_32")


class Rows(Stream):
    """A stream over an order; batches hold row numbers."""

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        return {"key": rows.tolist()}


def stream(groups: list[tuple[int, int]], window: int, seed: int, batch: int) -> Rows:
    order = BucketOrder([rows for rows, _ in groups], [bucket for _, bucket in groups], window, seed, batch)
    return Rows(order.rows, seed, batch, order)


@settings(max_examples=60, deadline=None)
@given(
    groups=GROUPS,
    window=st.integers(1, 5),
    seed=st.integers(0, 9),
    world=st.integers(1, 8),
    accumulation=st.integers(1, 3),
    size=st.integers(1, 3),
    workers=st.integers(1, 4),
)
def test_each_sample_once_per_epoch_in_batches_of_one_bucket(
    groups: list[tuple[int, int]], window: int, seed: int, world: int, accumulation: int, size: int, workers: int
) -> None:
    batch = world * accumulation * size
    data, alone = stream(groups, window, seed, batch), stream(groups, window, seed, batch)
    assert isinstance(data.order, BucketOrder)
    steps = int(data.order.taken(3).sum())
    bucket_of = np.repeat([bucket for _, bucket in groups], [rows for rows, _ in groups])

    def one(at: tuple[int, int, int]) -> list[int]:
        step, micro, rank = at
        return data.batch(step, rank, world, micro, accumulation)["key"]

    places = [(step, micro, rank) for step in range(steps) for micro in range(accumulation) for rank in range(world)]
    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(one, places))
    count = world * accumulation
    whole = [[row for part in parts[step * count : (step + 1) * count] for row in part] for step in range(steps)]
    backwards = [alone.batch(step)["key"] for step in reversed(range(steps))][::-1]
    assert [sorted(rows) for rows in whole] == [sorted(rows) for rows in backwards]
    seen: dict[int, list[int]] = {int(bucket): [] for bucket in np.unique(bucket_of)}
    for rows in backwards:
        (bucket,) = set(bucket_of[rows].tolist())
        seen[bucket] += rows
    for bucket, rows in seen.items():
        mine = np.flatnonzero(bucket_of == bucket).tolist()
        assert 3 * len(mine) - batch < len(rows) <= 3 * len(mine)  # less than a batch is left for the next epoch
        for epoch in range(3):
            part = rows[epoch * len(mine) : (epoch + 1) * len(mine)]
            assert len(set(part)) == len(part) and set(part) <= set(mine)


@given(groups=GROUPS, window=st.integers(1, 5), seed=st.integers(0, 9), step=st.integers(0, 10**12))
def test_seeking_agrees_with_what_is_read(groups: list[tuple[int, int]], window: int, seed: int, step: int) -> None:
    order = stream(groups, window, seed, 4).order
    positions = np.arange(step * 4, step * 4 + 4)
    rows = order.row_ids(positions)
    to_load, to_keep = order.windows_around(positions)
    assert {int(group) for group in order.group_of(rows[[0, -1]])} <= set(to_load)
    assert set(to_load + to_keep) <= set(range(len(groups)))
    kinds = [bucket for _, bucket in groups]
    assert {kinds[group] for group in to_load} == set(kinds)  # the next batch may be of any bucket
    other_rows = order.other_rows(int(positions[0])).tolist()
    assert int(rows[0]) not in other_rows
    assert {kinds[group] for group in order.group_of(np.array([*other_rows, rows[0]]))} == {
        kinds[order.group_of(rows)[0]]
    }


def test_buckets_take_turns_by_their_rows() -> None:
    order = BucketOrder([100, 300], [0, 1], 1, 0, 10)
    turns = [order.position_of_step(step).bucket for step in range(400)]
    assert turns.count(0) == 100 and turns[:40].count(0) == 10 and sorted(turns[:40]) != turns[:40]


def make_image(index: int) -> np.ndarray:
    """Returns uint8 RGB, square, wide or high by its index, which the colour of its corners encodes."""
    height, width = ((60, 60), (60, 84), (90, 64))[index % 3]
    image = np.full((height, width, 3), index * 5, np.uint8)
    image[height // 3 : height // 2, width // 3 : width // 2] = 255
    return image


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A pack shard of 40 images in three buckets, every eighth for validation, and embeddings of width 8."""
    folder = tmp_path_factory.mktemp("buckets")
    keys = [f"00000{row:04d}" for row in range(40)]
    with tarfile.open(folder / "d.tar", "w") as tar:
        for row, key in enumerate(keys):
            data = cv2.imencode(".png", make_image(row))[1].tobytes()
            member = tarfile.TarInfo(f"{key}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    captions = [f"picture {row}" for row in range(40)]
    columns = {"key": keys, "caption": captions, "status": ["success"] * 40}
    sizes = {name: pa.array([64] * 40, pa.int32()) for name in ("original_width", "original_height")}
    write_table(pa.table(columns | sizes), folder / "d", "download")
    splits = ["train" if row % 8 else "validation" for row in range(40)]
    selected = {"key": keys, "keep": [True] * 40, "reason": pa.nulls(40, pa.string()), "split": splits}
    write_table(pa.table(selected), folder / "s", "selection")
    pack = folder / "p.parquet"
    assert pack_shard(folder / "d.tar", folder / "d", folder / "s", pack, PACK) == {
        "rows": 40,
        "train": 35,
        "validation": 5,
    }
    rows = []
    for row in read_table(pack, "pack", ["key", "caption"]).to_pylist():
        data, scale = encode_embedding(np.full((2, 8), int(row["key"][5:]), np.float32), "float16")
        rows.append(row | {"length": 2, "dim": 8, "codec": "float16", "embedding": data, "scale": scale})
    metadata = pq.read_metadata(pack)
    groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    write_embedding_shard(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "e.parquet", EmbedConfig(), groups)
    return str(pack), str(folder / "e.parquet")


def test_row_groups_are_of_one_bucket_and_split(shard: tuple[str, str]) -> None:
    with pq.ParquetFile(shard[0]) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            assert len(set(table["split"].to_pylist())) == len(set(table["bucket"].to_pylist())) == 1
            shape = BUCKETS[table["bucket"][0].as_py()]
            assert {len(data) for data in table["pixels_16"].to_pylist()} == {3 * shape[0] * shape[1]}
        assert file.read(["split"])["split"].to_pylist() == ["train"] * 35 + ["validation"] * 5


@pytest.mark.parametrize("split", ["train", "validation"])
def test_batches_have_images_of_one_bucket_and_their_text(shard: tuple[str, str], split: str) -> None:
    loader = Loader([shard[0]], [shard[1]], COLUMNS, split, 0, 4, config=LoaderConfig(window_mb=1))
    names = list(BUCKETS)
    shapes, seen = set(), []
    assert isinstance(loader.order, BucketOrder)
    for step in range(int(loader.order.taken(2).sum())):
        batch = loader.batch(step)
        rows = [int(key[5:]) for key in batch["key"]]
        (kind,) = {row % 3 for row in rows}
        height, width = BUCKETS[names[kind]]
        assert batch["pixels_16"].shape == (4, height, width, 3)
        assert batch["pixels_32"].shape == (4, 2 * height, 2 * width, 3)
        assert batch["pixels_16"][:, 0, 0, 0].tolist() == [row * 5 for row in rows]
        assert batch["text_BLD"][:, 0, 0].tolist() == rows
        halves = [loader.batch(step, rank, 2)["key"] for rank in range(2)]
        assert sorted(halves[0] + halves[1]) == sorted(batch["key"])
        shapes.add((height, width))
        seen += rows
    # 35 rows twice but for the batches not yet full; the five of validation are 1, 2 and 2 a bucket.
    assert len(shapes) == 3 if split == "train" else seen == [] or len(shapes) < 3
    assert all(seen.count(row) in (1, 2) for row in range(40) if row % 8) or split != "train"


def test_a_bucket_smaller_than_a_batch_is_logged(shard: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    Loader([shard[0]], None, COLUMNS, "train", 0, 8)
    assert not caplog.records
    Loader([shard[0]], None, COLUMNS, "train", 0, 12)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["bucket 3:4 has 11 rows of split train"]


def test_a_stage_trains_on_images_that_are_not_square(shard: tuple[str, str]) -> None:
    base = DiffusionStageConfig(resolution=16, model="micro-base")
    upper = DiffusionStageConfig(
        resolution=32,
        low_resolution=16,
        model="micro-sr",
        diffusion=DiffusionConfig(prediction="x0", lowres_max_level=0.3),
    )
    for config, columns in ((base, COLUMNS[:1]), (upper, COLUMNS[::-1])):
        loader = Loader([shard[0]], [shard[1]], columns, "train", 0, 4)
        task = DiffusionTask(config, 8)
        torch.manual_seed(0)
        model = task.build()
        for step in range(5):
            batch = loader.batch(step)
            loss, _ = task.loss(model, batch, SampleRandom(0, step, batch["index"].tolist()))
            loss.backward()
            assert bool(torch.isfinite(loss))


def test_crops_of_any_bucket_share_a_batch(shard: tuple[str, str]) -> None:
    loader = Loader([shard[0]], None, COLUMNS, None, 0, 40, crop=16)
    batch = loader.batch(0)
    assert batch["pixels_32"].shape == (40, 16, 16, 3) and batch["pixels_16"].shape == (40, 8, 8, 3)
    assert sorted(int(key[5:]) for key in batch["key"]) == list(range(40))
    with pytest.raises(UserError, match="crop=28: give a multiple of 2 up to 24, the shortest side"):
        Loader([shard[0]], None, COLUMNS, None, 0, 40, crop=28)


def test_redacted_rows_leave_their_bucket(shard: tuple[str, str], tmp_path: Path) -> None:
    gone = {"000000001", "000000002"}  # of two buckets
    left = [str(tmp_path / name) for name in ("p.parquet", "e.parquet")]
    for source, target in zip(shard, left, strict=True):
        assert redact_parquet(source, target, 0, gone) == 2
    before, after = (Loader([pack], [embed], COLUMNS, "train", 0, 4) for pack, embed in (shard, left))
    assert isinstance(before.order, BucketOrder) and isinstance(after.order, BucketOrder)
    assert len(after) == len(before) - 2 and (before.order.sizes - after.order.sizes).tolist() == [0, 1, 1]
    keys = {key for step in range(30) for key in after.batch(step)["key"]}
    assert len(keys) == 33 and not keys & gone


def test_a_row_group_of_several_buckets_is_refused(shard: tuple[str, str], tmp_path: Path) -> None:
    write_table(read_table(shard[0], "pack"), tmp_path / "p.parquet", "pack", [40])
    with pytest.raises(UserError, match="row group 0 has images of several buckets"):
        Loader([str(tmp_path / "p.parquet")], None, COLUMNS, "train", 0, 4)
