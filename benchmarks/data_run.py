"""The data stages of a config in this process, without Ray and without training: a run folder that holds real shards.

The shard workers are the pipeline's own. The text encoder has random weights, and nothing is scored.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import torch

from dataprep import storage
from dataprep.redact import ForgottenList
from dataprep.schema import read_table, write_table
from dataprep.select import PairShard, select
from dataprep.sources import write_listing
from pipeline.config import RunConfig
from pipeline.steps.data import AnnotateWorker, DownloadWorker, EmbedWorker, PackWorker
from pipeline.store import Artifact, Manifest, Run, Shard, describe, now
from train.tasks.t5 import T5Task

FINGERPRINT = "0" * 16


def make_data_run(config: RunConfig) -> str:
    """Fills ``config.run``, a local folder that is not there yet, up to embed; ``config`` is of the embedded corpus."""
    run = Run(config.run)
    made: dict[str, Artifact] = {}

    def stage(name: str, write: Callable[[Path], dict[str, int]]) -> None:
        folder = Path(run.stage_folder(name, FINGERPRINT))
        folder.mkdir(parents=True)
        counters = write(folder)
        outputs = [describe(str(folder), file) for file in storage.list_files(str(folder))]
        made[name] = run.commit(Manifest(name, FINGERPRINT, {}, {}, outputs, counters, 0.0, {}))

    def each(worker: Callable[[Shard, Path], dict[str, int]], *inputs: str) -> Callable[[Path], dict[str, int]]:
        def write(folder: Path) -> dict[str, int]:
            total: dict[str, int] = {}
            for parts in zip(*(made[name].shards for name in inputs), strict=True):
                files = {f"{n}.{e}": p for n, part in zip(inputs, parts, strict=True) for e, p in part.files.items()}
                for name, count in worker(Shard(parts[0].id, files), folder).items():
                    total[name] = total.get(name, 0) + count
            return total

        return write

    stage("listing", lambda folder: write_listing(config.listing, config.seed, str(folder), set()))
    fetch = DownloadWorker(config.download, config.listing.scenes, config.seed, ForgottenList(path=run.path("none")))
    with fetch.open:
        stage("download", each(fetch, "listing"))
    stage("annotate", each(AnnotateWorker(config.annotate), "download"))
    stage("score", each(_no_score, "download"))
    stage("select", lambda folder: _select(config, made, folder))
    stage("pack", each(PackWorker(config.pack), "download", "select"))
    with tempfile.TemporaryDirectory() as encoder:
        _encoder(config, made["pack"], encoder)
        stage("embed", each(EmbedWorker(config.embed, encoder), "pack"))
    states = {name: {"fingerprint": FINGERPRINT, "state": "done"} for name in made}
    storage.write_json(run.path("run.json"), {"started": now(), "status": "finished", "stages": states})
    return run.root


def _no_score(shard: Shard, out: Path) -> dict[str, int]:
    """A table of scores with none in it."""
    keys = read_table(shard.files["download.parquet"], "download", ["key"])["key"]
    none = pa.array([None] * len(keys), pa.float32())
    write_table(pa.table({"key": keys, "clip_similarity": none}), out / f"{shard.id:05d}.parquet", "scores")
    return {"rows": len(keys), "scored": 0}


def _select(config: RunConfig, made: dict[str, Artifact], folder: Path) -> dict[str, int]:
    """Every rule of the config but CLIP's."""
    names = ("annotate", "score", "download")
    files = [PairShard(*paths) for paths in zip(*(made[name].files() for name in names), strict=True)]

    def write(place: int, table: pa.Table) -> None:
        write_table(table, folder / f"{made['download'].shards[place].id:05d}.parquet", "selection")

    chosen = select(files, config.select, write, None)
    return {"rows": chosen.rows, "kept": chosen.kept}


def _encoder(config: RunConfig, pack: Artifact, folder: str) -> None:
    """The config's own small T5 with a tokenizer of these captions and random weights."""
    assert config.encoder.pretrain is not None
    captions = [text for path in pack.files() for text in read_table(path, "pack", ["caption"])["caption"].to_pylist()]
    task = T5Task(config.encoder.pretrain, captions)
    torch.manual_seed(0)
    task.export(folder, task.build().state_dict(), 0)
