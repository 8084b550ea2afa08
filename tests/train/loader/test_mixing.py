"""Sources and captions mixed by weight, as batches of the loader show it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dataprep.io.errors import UserError
from tests.helpers.packs import make_embedding, write_embeddings, write_pack
from train.loader.config import LoaderConfig
from train.loader.loader import TRAIN, VALIDATION, Loader
from train.loader.mix_config import DataMix
from train.loader.reader import Reader
from train.loader.shard_index import ShardIndex, index_shards

WEIGHTS = {"web": 70.0, "photos": 20.0, "tars": 10.0}
SPANS = {"web": [(0, 200), (200, 320)], "photos": [(320, 520)], "tars": [(520, 640)]}
COLUMN = ("pixels_16",)


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Shards of three sources, with 280, 175 and 105 rows to train on, 16 per row group."""
    folder = tmp_path_factory.mktemp("packs")
    return [
        write_pack(folder / f"{start}.parquet", start, stop, (16,), rows=16, source=source)
        for source, spans in SPANS.items()
        for start, stop in spans
    ]


def source_of(key: str) -> str:
    return next(name for name, spans in SPANS.items() if any(start <= int(key) < stop for start, stop in spans))


def make_loader(packs: list[str], batch: int = 20, window_mb: int = 256, seed: int = 0) -> Loader:
    mix = DataMix(sources=WEIGHTS)
    return Loader(packs, None, COLUMN, TRAIN, seed, batch, config=LoaderConfig(window_mb=window_mb), mix=mix)


def test_an_epoch_has_the_shares_of_the_weights(packs: list[str]) -> None:
    loader = make_loader(packs)
    assert len(loader) == 560
    keys = [key for step in range(28) for key in loader.batch(step)["key"]]
    counts = Counter(map(source_of, keys))
    assert all(abs(counts[name] - 560 * weight / 100) <= 2 for name, weight in WEIGHTS.items()), counts
    # 392 of 280 rows of the web: each once before any comes again, and so for the others, which are not seen whole.
    seen = Counter(keys)
    assert {seen[key] for key in seen if source_of(key) == "web"} == {1, 2}
    assert {seen[key] for key in seen if source_of(key) != "web"} == {1}


@pytest.mark.parametrize("world", [2, 4, 5])
def test_ranks_share_the_same_batches(packs: list[str], world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several windows, so that ranks split a batch by row group; and a new process goes on at any step."""
    monkeypatch.setattr(Reader, "groups_per_window", lambda self: 10)
    whole = make_loader(packs)
    assert whole.order.windows > 1
    for step in range(30):
        parts = [make_loader(packs).batch(step, rank, world)["key"] for rank in range(world)]
        assert sorted(key for part in parts for key in part) == sorted(whole.batch(step)["key"])


def test_without_weights_rows_count_alike(packs: list[str]) -> None:
    loader = Loader(packs, None, COLUMN, TRAIN, 0, 20)
    keys = [key for step in range(28) for key in loader.batch(step)["key"]]
    assert len(set(keys)) == 560
    assert len(Loader(packs, None, COLUMN, VALIDATION, 0, 20, mix=DataMix(sources=WEIGHTS))) == 80


def test_a_source_without_rows_is_named(packs: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"listing.sources.tars.weight=10: no row of split 'train' .* leave the source"):
        Loader(packs[:-1], None, COLUMN, TRAIN, 0, 20, mix=DataMix(sources=WEIGHTS))


def test_the_index_knows_the_sources(packs: list[str], tmp_path: Path) -> None:
    index_shards(packs, None, COLUMN).write(str(tmp_path / "index"))
    data = Reader(ShardIndex.read(str(tmp_path / "index")), LoaderConfig()).select(TRAIN)
    assert data.sources == ["photos", "tars", "web"]
    rows = np.bincount(data.source_of, data.rows)
    assert rows.tolist() == [175, 105, 280]


NAMES = ["caption", "long", "short"]


def make_captioned(folder: Path, weights: dict[str, float], rows: int = 64) -> Loader:
    pack = [write_pack(folder / "p", 0, rows, (16,), captions=3, names=NAMES)]
    embed = [write_embeddings(folder / "e", 0, rows, captions=3)]
    return Loader(pack, embed, COLUMN, None, 3, rows, mix=DataMix(captions={"": weights}))


def test_captions_are_chosen_by_weight(tmp_path: Path) -> None:
    weights = {"caption": 1.0, "long": 2.0, "short": 5.0}
    loader = make_captioned(tmp_path, weights)
    counts = np.zeros(3)
    for step in range(60):
        batch = loader.batch(step)
        for at, (key, caption) in enumerate(zip(batch["key"], batch["caption"], strict=True)):
            number = int(caption[-1])
            counts[number] += 1
            length = int(batch["text_mask_BL"][at].sum())
            expected = make_embedding(int(key) * 3 + number)
            np.testing.assert_allclose(batch["text_BLD"][at][:length], expected, atol=0.02)
    shares = counts / counts.sum()  # of 3,840, standard deviation below 0.8%
    assert np.abs(shares - [0.125, 0.25, 0.625]).max() < 0.03
    assert (
        loader.batch(7)["caption"]
        == make_captioned(tmp_path, {"caption": 1, "long": 2, "short": 5}).batch(7)["caption"]
    )


def test_captions_without_weights_are_chosen_equally_often(tmp_path: Path) -> None:
    pack = [write_pack(tmp_path / "p", 0, 64, (16,), captions=3)]
    loader = Loader(pack, None, COLUMN, None, 3, 64)
    numbers = Counter(caption[-1] for step in range(60) for caption in loader.batch(step)["caption"])
    assert all(abs(count / 3840 - 1 / 3) < 0.03 for count in numbers.values()), numbers


def test_captions_that_the_config_does_not_weigh_are_refused(tmp_path: Path) -> None:
    loader = make_captioned(tmp_path, {"caption": 1, "long": 2})
    with pytest.raises(UserError, match="has the captions caption, long, short, the config weighs caption, long"):
        loader.batch(0)
