"""Stages of the data: listing, download, annotate, score, select, pack, embed."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataprep import storage
from dataprep.annotate import AnnotateConfig, annotate_shard
from dataprep.decode import read_shard_rgb
from dataprep.download import DownloadConfig, download_shard
from dataprep.embed import EmbedConfig, embed_shard, load_encoder
from dataprep.pack import PackConfig, pack_shard
from dataprep.scenes import HOST, serve
from dataprep.schema import read_table, write_table
from dataprep.select import filter_quality
from dataprep.select import select as select_rows
from dataprep.sources import ListingConfig, check_source, source_files, write_listing
from eval.clip import ClipScorer, score_shard
from eval.scoring import ahead
from pipeline.config import RunConfig
from pipeline.context import Context
from pipeline.steps.models import clip_spec, encoder_spec
from pipeline.store import Shard


def listing_sources(config: RunConfig) -> list[str]:
    """The user's own files: their bytes are part of the listing's fingerprint. UserError where they will not do."""
    check_source(config.listing)
    return source_files(config.listing)


def listing(ctx: Context) -> None:
    """The source's rows as Parquet shards."""
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:
        ctx.counters |= write_listing(ctx.config["listing"], ctx.config["seed"], scratch)
        for name in storage.list_files(scratch):
            storage.publish(Path(scratch) / name, ctx.path(name))


class DownloadWorker:
    """Fetches a listing shard; for the embedded corpus each worker serves the corpus to itself over loopback."""

    def __init__(self, config: DownloadConfig, listing: ListingConfig, seed: int) -> None:
        self.config, self.hosts, self.open = config, {}, ExitStack()
        if listing.source == "scenes":
            self.hosts = {HOST: self.open.enter_context(serve(listing.scenes, seed))}

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        """One tar and one Parquet file."""
        return download_shard(shard.files["listing.parquet"], shard.id, out, self.config, self.hosts)


def download(ctx: Context) -> None:
    """URLs to tar + Parquet shards; every row keeps a status and a reason."""
    arguments = {"config": ctx.config["download"], "listing": ctx.config["listing"], "seed": ctx.config["seed"]}
    ctx.map_shards(DownloadWorker, arguments, ctx.shards("listing"))


class AnnotateWorker:
    """Measures the pairs of a download shard."""

    def __init__(self, config: AnnotateConfig) -> None:
        self.config = config

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        """One Parquet file, row-aligned with the shard's."""
        tar, parquet = shard.files["download.tar"], shard.files["download.parquet"]
        return annotate_shard(tar, parquet, out / f"{shard.id:05d}.parquet", self.config)


def annotate(ctx: Context) -> None:
    """Sizes, hashes, caption statistics and language as columns."""
    ctx.map_shards(AnnotateWorker, {"config": ctx.config["annotate"]}, ctx.shards("download"))


class ScoreWorker:
    """Scores the pairs of a download shard with CLIP."""

    def __init__(self, clip: Any, max_pixels: int) -> None:
        self.scorer, self.max_pixels = ClipScorer.load(clip), max_pixels

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        """One Parquet file, row-aligned with the shard's."""
        images = ahead(read_shard_rgb(shard.files["download.tar"], self.max_pixels))
        return score_shard(images, shard.files["download.parquet"], out / f"{shard.id:05d}.parquet", self.scorer)


def score(ctx: Context) -> None:
    """CLIP similarity of every pair as a column."""
    arguments = {"clip": clip_spec(ctx.inputs["clip"]), "max_pixels": AnnotateConfig().max_pixels}
    ctx.map_shards(ScoreWorker, arguments, ctx.shards("download"))


def select(ctx: Context) -> None:
    """Columns and rules to keep or drop, with the reason; global, since duplicates are."""
    shards = ctx.shards("download", "annotate", "score")
    annotations = [read_table(shard.files["annotate.parquet"], "annotations") for shard in shards]
    scores = [read_table(shard.files["score.parquet"], "scores") for shard in shards]
    tables, funnel = select_rows(annotations, scores, ctx.config["select"], ctx.config["clip.min_similarity"])
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:
        for shard, table in zip(shards, tables, strict=True):
            name = f"{shard.id:05d}.parquet"
            write_table(table, Path(scratch) / name, "selection")
            storage.publish(Path(scratch) / name, ctx.path(name))
    storage.write_json(ctx.path("funnel.json"), funnel)
    downloads = [read_table(shard.files["download.parquet"], "download") for shard in shards]
    quality = filter_quality(downloads, tables)
    storage.write_json(ctx.path("quality.json"), quality)
    rows = sum(table.num_rows for table in tables)
    kept = sum(pa.compute.sum(table["keep"]).as_py() or 0 for table in tables)
    ctx.counters |= {"rows": rows, "kept": kept, "dropped": rows - kept}


class PackWorker:
    """Packs the kept images of a shard at every training resolution."""

    def __init__(self, config: PackConfig) -> None:
        self.config = config

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        """One Parquet file of the kept rows."""
        files = shard.files
        path = out / f"{shard.id:05d}.parquet"
        return pack_shard(
            files["download.tar"], files["download.parquet"], files.get("select.parquet"), path, self.config
        )


def pack(ctx: Context) -> None:
    """Kept images as one column a training resolution."""
    ctx.map_shards(PackWorker, {"config": ctx.config["pack"]}, ctx.shards("download", "select"))


class EmbedWorker:
    """Embeds the captions of a pack shard."""

    def __init__(self, config: EmbedConfig, encoder: str) -> None:
        self.config = config
        self.encoder = load_encoder(storage.local_folder(encoder), config)

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        """One Parquet file, row-aligned with the pack shard."""
        return embed_shard(shard.files["pack.parquet"], out / f"{shard.id:05d}.parquet", self.encoder, self.config)


def embed(ctx: Context) -> None:
    """Kept captions to T5 embeddings at their true length."""
    arguments = {"config": ctx.config["embed"], "encoder": encoder_spec(ctx.inputs["encoder"])}
    ctx.map_shards(EmbedWorker, arguments, ctx.shards("pack"))
