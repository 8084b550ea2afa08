"""Runs the data stages of a config in this process, without Ray and without training, into a run folder.

The shard workers are the pipeline's own. The text encoder has random weights, and nothing is scored.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dataprep.filters.pair_shards import PairShard
from dataprep.filters.select import select_pairs
from dataprep.filters.steps import LocalRunner
from dataprep.io import storage
from dataprep.io.parquet import read_table, write_table
from dataprep.io.redact import ForgottenList
from dataprep.listing.writer import write_listing
from pipeline.config import RunConfig
from pipeline.runtime.shard_worker import ShardTask, ShardWorker
from pipeline.stages.annotate import AnnotateWorker
from pipeline.stages.download import DownloadWorker
from pipeline.stages.embed import EmbedWorker
from pipeline.stages.pack import PackWorker
from pipeline.store.artifact import Artifact, Manifest, describe_file
from pipeline.store.run import Run, current_time
from train.tasks.t5 import T5Task
from train.tasks.t5_config import T5TrainingConfig

FINGERPRINT = "0" * 16


def make_data_run(config: RunConfig) -> str:
    """Runs listing to embed into ``config.run``, a local folder that must not exist; returns the folder.

    ``config`` must use the embedded corpus.
    """
    run = Run(config.run)
    made: dict[str, Artifact] = {}
    pixels = config.download.max_pixels

    def commit_stage(name: str, write: Callable[[Path], dict[str, int]]) -> None:
        folder = Path(run.stage_folder(name, FINGERPRINT))
        folder.mkdir(parents=True)
        counters = write(folder)
        outputs = [describe_file(str(folder), file) for file in storage.list_files(str(folder))]
        made[name] = run.commit(Manifest(name, FINGERPRINT, {}, {}, outputs, counters, 0.0, {}))

    def map_stage(name: str, worker: ShardWorker, *inputs: str) -> None:
        commit_stage(name, lambda folder: _map_shards(worker, [made[stage] for stage in inputs], folder))

    commit_stage("listing", lambda folder: write_listing(config.listing, config.seed, str(folder), set()))
    fetch = DownloadWorker(config.download, config.listing.scenes, config.seed, ForgottenList(path=run.path("none")))
    with fetch.open:
        map_stage("download", fetch, "listing")
    map_stage("annotate", AnnotateWorker(config.annotate, pixels), "download")
    map_stage("score", NullScoreWorker(), "download")
    commit_stage("select", lambda folder: _select_pairs(config, made, folder))
    map_stage("pack", PackWorker(config.pack, pixels), "download", "select")
    with tempfile.TemporaryDirectory() as encoder:
        _export_encoder(config, made["pack"], encoder)
        map_stage("embed", EmbedWorker(config.embed, encoder), "pack")
    states = {name: {"fingerprint": FINGERPRINT, "state": "done"} for name in made}
    storage.write_json(run.path("run.json"), {"started": current_time(), "status": "finished", "stages": states})
    return run.root


class NullScoreWorker:
    """Writes a table of scores that are all null."""

    def __call__(self, task: ShardTask) -> dict[str, int]:
        """Writes one Parquet file, row-aligned with the download's."""
        keys = read_table(task.table("download"), "download", ["key"])["key"]
        nulls = pa.array([None] * len(keys), pa.float32())
        write_table(pa.table({"key": keys, "clip_similarity": nulls}), task.output_table(), "scores")
        return {"rows": len(keys), "scored": 0}


def _map_shards(worker: ShardWorker, inputs: Sequence[Artifact], folder: Path) -> dict[str, int]:
    """Runs ``worker`` over the shards of ``inputs``, joined by position; returns the sums of its counters."""
    names = [artifact.manifest.stage for artifact in inputs]
    total: dict[str, int] = {}
    for parts in zip(*(artifact.shards for artifact in inputs), strict=True):
        files = {f"{n}.{e}": path for n, part in zip(names, parts, strict=True) for e, path in part.files.items()}
        for name, count in worker(ShardTask(parts[0].id, files, folder)).items():
            total[name] = total.get(name, 0) + count
    return total


def _select_pairs(config: RunConfig, made: dict[str, Artifact], folder: Path) -> dict[str, int]:
    """Applies every rule of the config except CLIP's."""
    tables = zip(*(made[name].files() for name in ("annotate", "score", "download")), strict=True)
    shards = [
        PairShard(shard.id, pq.read_metadata(paths[0]).num_rows, *paths)
        for shard, paths in zip(made["download"].shards, tables, strict=True)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        chosen = select_pairs(shards, config.select, LocalRunner(Path(scratch)))
        for table in chosen.tables.values():
            storage.publish(table, storage.join(str(folder), Path(table).name))
    return {"rows": chosen.rows, "kept": chosen.kept}


def _export_encoder(config: RunConfig, pack: Artifact, folder: str) -> None:
    """Exports the config's T5 with random weights and a tokenizer of the pack's captions."""
    assert isinstance(config.encoder.pretrain, T5TrainingConfig)
    captions = [text for path in pack.files() for text in read_table(path, "pack", ["caption"])["caption"].to_pylist()]
    task = T5Task(config.encoder.pretrain, captions)
    torch.manual_seed(0)
    task.export(folder, task.build().state_dict(), 0)
