"""The index of a training's shards: made once, by the driver or, where there are many, by tasks on the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataprep.io.errors import UserError
from pipeline.runtime.context import Context
from pipeline.store.fingerprint import hash_json
from train.loader.shard_index import ShardIndex, index_shards, join_indexes, read_source

INDEX_FILE = "shard_index.parquet"  # in the folder of a training, which removes it at its end
SHARDS_PER_TASK = 256  # up to so many are indexed by the driver; beyond, by tasks on the cluster


def write_shard_index(
    ctx: Context[Any, Any],
    path: str,
    pack: Sequence[str],
    embed: Sequence[str] | None,
    columns: Sequence[str],
    content: str,
    min_original: int = 0,
    vectors: Sequence[str] = (),
) -> None:
    """Writes the index of shards to ``path``, where the ranks of a training read it, unless it is there already.

    ``content`` identifies what is in the shards: they may be rewritten under the same names (`imagen-ray forget`). The
    other arguments are those of `index_shards`, which says what is raised.
    """
    source = hash_json([content, list(pack), list(embed or ()), list(columns), min_original, list(vectors)])
    if read_source(path) == source:
        return
    starts = range(0, len(pack), SHARDS_PER_TASK)
    parts = [
        (
            pack[at : at + SHARDS_PER_TASK],
            embed[at : at + SHARDS_PER_TASK] if embed else None,
            *(columns, min_original, vectors),
        )
        for at in starts
    ]
    index = (
        index_shards(pack, embed, columns, min_original, vectors) if len(parts) < 2 else _index_on_cluster(ctx, parts)
    )
    index.write(path, source)


def _index_on_cluster(ctx: Context[Any, Any], parts: Sequence[tuple[Any, ...]]) -> ShardIndex:
    """Indexes each part in a task of its own; they are bound by the latency of the storage and by parsing footers."""
    import ray
    from ray.exceptions import RayTaskError

    ctx.connect()
    task = ray.remote(index_shards).options(num_cpus=1, scheduling_strategy="SPREAD")
    try:
        return join_indexes(ray.get([task.remote(*part) for part in parts]))
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
