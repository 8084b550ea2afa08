"""The index of a training's shards: made once, by the driver or on the cluster, and again when they changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from pipeline.runtime import training_data
from pipeline.runtime.training_data import INDEX_FILE, write_shard_index
from tests.helpers.contexts import make_context
from tests.helpers.counted_store import REQUESTS, reset
from tests.helpers.packs import write_embeddings, write_pack
from train.loader.shard_index import ShardIndex

COLUMN = ("pixels_16",)


def write_shards(folder: Path, count: int) -> tuple[list[str], list[str]]:
    """Writes shards of 8 rows."""
    spans = [(8 * number, 8 * number + 8) for number in range(count)]
    pack = [write_pack(folder / f"p{start}", start, stop, sizes=(16,)) for start, stop in spans]
    return pack, [write_embeddings(folder / f"e{start}", start, stop) for start, stop in spans]


def test_it_is_made_once_until_the_shards_change(tmp_path: Path) -> None:
    pack, embed = ([f"counted://{path}" for path in paths] for paths in write_shards(tmp_path, 2))
    ctx, path = make_context(tmp_path, "train.base"), str(tmp_path / INDEX_FILE)
    made = []
    # The last two: a row was forgotten, so the same files have other content; and other pixels are trained on.
    for content, columns in [("a", COLUMN), ("a", COLUMN), ("b", COLUMN), ("b", ())]:
        reset()
        write_shard_index(ctx, path, pack, embed, columns, content)
        made.append(REQUESTS["get"] > 0)
    assert made == [True, False, True, True]
    assert len(ShardIndex.read(path)) == 2


@pytest.mark.usefixtures("local_ray")
def test_many_shards_are_indexed_by_tasks_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack, embed = write_shards(tmp_path, 5)
    ctx = make_context(tmp_path, "train.base")
    write_shard_index(ctx, str(tmp_path / "one"), pack, embed, COLUMN, "a")
    monkeypatch.setattr(training_data, "SHARDS_PER_TASK", 2)
    write_shard_index(ctx, str(tmp_path / "two"), pack, embed, COLUMN, "a")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    write_embeddings(tmp_path / "short", 0, 7)
    with pytest.raises(UserError, match=r"short: not the same rows in the same order as .*p8; run embed again"):
        write_shard_index(
            ctx, str(tmp_path / "bad"), pack, [embed[0], str(tmp_path / "short"), *embed[2:]], COLUMN, "a"
        )
