"""Stages of the data: listing, download, annotate, score, select, pack, embed."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataprep import storage
from dataprep.annotate import SCHEMA as ANNOTATIONS
from dataprep.annotate import AnnotateConfig, annotate_shard
from dataprep.decode import read_shard_rgb
from dataprep.download import DownloadConfig, Previous, download_shard, transient_failures
from dataprep.embed import EmbedConfig, embed_shard, load_encoder
from dataprep.pack import PackConfig, pack_shard
from dataprep.quality import filter_quality
from dataprep.redact import FORGOTTEN_FILE, Forgotten, ForgottenList
from dataprep.robots import PolicyMemory
from dataprep.rules import make_filters, make_set_filters
from dataprep.scenes import HOST, ScenesConfig, serve
from dataprep.schema import read_table, write_table
from dataprep.select import PairShard
from dataprep.select import select as select_rows
from dataprep.sources import ListingConfig, check_source, source_files, write_listing
from eval.clip import ClipScorer, score_shard
from eval.heads import Head, HeadConfig, ScoreConfig, head_files
from eval.scoring import ahead
from pipeline.config import STORED_PIXELS, RunConfig
from pipeline.context import Context
from pipeline.steps.models import clip_spec, device, encoder_spec
from pipeline.store import Marker, Run, Shard


def listing_sources(config: RunConfig) -> list[str]:
    """The user's own files, and who asked this run to be forgotten: their bytes are part of the listing's fingerprint.

    UserError where they will not do.
    """
    columns = check_source(config.listing)
    # A rule on a column that neither the list nor a stage will have: better said now than after the download.
    available = {*ANNOTATIONS.names, "url", "clip_similarity", *columns, *config.score.heads.given()}
    available |= {"clip_embedding"} if config.score.embeddings else set()
    make_filters(config.select, available, config.clip.min_similarity)
    make_set_filters(config.select, available)
    forgotten = Run(config.run).path(FORGOTTEN_FILE)
    return source_files(config.listing) + ([forgotten] if storage.exists(forgotten) else [])


def listing(ctx: Context) -> None:
    """The source's rows as Parquet shards."""
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:
        forgotten = Forgotten.read(ctx.run.path(FORGOTTEN_FILE)).urls
        ctx.counters |= write_listing(ctx.config["listing"], ctx.config["seed"], scratch, forgotten)
        for name in storage.list_files(scratch):
            storage.publish(Path(scratch) / name, ctx.path(name))


class DownloadWorker:
    """Fetches a listing shard; for the embedded corpus each worker serves the corpus to itself over loopback."""

    def __init__(
        self, config: DownloadConfig, scenes: ScenesConfig | None, seed: int, forgotten: ForgottenList
    ) -> None:
        self.config, self.hosts, self.open = config, {}, ExitStack()
        self.forgotten = Forgotten.read(forgotten.path).images
        self.memory = PolicyMemory()  # two requests a site and shard would be most of what a site is asked
        if scenes is not None:
            self.hosts = {HOST: self.open.enter_context(serve(scenes, seed))}

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        """One tar and one Parquet file."""
        files = shard.files
        previous = Previous(files["previous.tar"], files["previous.parquet"]) if "previous.tar" in files else None
        listing = files["listing.parquet"]
        return download_shard(
            listing,
            shard.id,
            out,
            self.config,
            self.hosts,
            forgotten=self.forgotten,
            previous=previous,
            memory=self.memory,
        )


def download(ctx: Context) -> None:
    """URLs to tar + Parquet shards; every row keeps a status and a reason. Then the passes of `retry_failed`."""
    config = ctx.config["download"]
    # The passes are no argument of the worker: with more of them, those that were made are taken over.
    once = config.model_copy(update={"retry_failed": 0})
    listing: ListingConfig = ctx.config["listing"]
    scenes = listing.scenes if listing.source == "scenes" else None
    arguments = {"config": once, "scenes": scenes, "seed": ctx.config["seed"]}
    arguments["forgotten"] = ForgottenList(path=ctx.run.path(FORGOTTEN_FILE))
    shards = ctx.shards("listing")
    ctx.map_shards(DownloadWorker, arguments, shards)
    for turn in range(1, config.retry_failed + 1):
        latest = {marker.id: marker for marker in ctx.finished}
        again = [_once_more(ctx, shard, latest[shard.id]) for shard in shards if shard.id in latest]
        again = [shard for shard in again if transient_failures(shard.files["previous.parquet"])]
        if not again:
            break
        ctx.map_shards(DownloadWorker, arguments, again, subfolder=f"pass-{turn:03d}")


def _once_more(ctx: Context, shard: Shard, done: Marker) -> Shard:
    """A listing shard together with what was downloaded of it."""
    files, sha256 = dict(shard.files), dict(shard.sha256)
    for output in done.outputs:
        name = f"previous.{output.path.rpartition('.')[2]}"
        files[name] = ctx.path(*filter(None, [done.subfolder, output.path]))
        sha256[name] = output.sha256
    return Shard(shard.id, files, sha256)


class AnnotateWorker:
    """Measures the pairs of a download shard."""

    def __init__(self, config: AnnotateConfig, max_pixels: int) -> None:
        self.config, self.max_pixels = config, max_pixels

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        """One Parquet file, row-aligned with the shard's."""
        tar, parquet = shard.files["download.tar"], shard.files["download.parquet"]
        return annotate_shard(tar, parquet, out / f"{shard.id:05d}.parquet", self.config, self.max_pixels)


def annotate(ctx: Context) -> None:
    """Sizes, hashes, caption statistics and language as columns."""
    arguments = {"config": ctx.config["annotate"], "max_pixels": ctx.config[STORED_PIXELS]}
    ctx.map_shards(AnnotateWorker, arguments, ctx.shards("download"))


class ScoreWorker:
    """Scores the pairs of a download shard with CLIP, and with the heads over its features."""

    def __init__(self, clip: Any, max_pixels: int, heads: dict[str, HeadConfig], embeddings: bool) -> None:
        self.scorer, self.max_pixels, self.embeddings = ClipScorer.load(clip, device()), max_pixels, embeddings
        self.heads = [Head.load(name, head) for name, head in heads.items()]

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        """One Parquet file, row-aligned with the shard's."""
        images = ahead(read_shard_rgb(shard.files["download.tar"], self.max_pixels))
        path = out / f"{shard.id:05d}.parquet"
        downloads = shard.files["download.parquet"]
        return score_shard(images, downloads, path, self.scorer, self.heads, self.embeddings)


def score_sources(config: RunConfig) -> list[str]:
    """The weights of the heads: their bytes count, and a missing file is noticed before any work."""
    return head_files(config.score.heads)


def score(ctx: Context) -> None:
    """CLIP similarity of every pair as a column, and what the heads say."""
    config: ScoreConfig = ctx.config["score"]
    heads = {
        name: head.model_copy(update={"path": storage.absolute(head.path)})
        for name, head in config.heads.given().items()
    }
    arguments = {"clip": clip_spec(ctx.inputs["clip"]), "max_pixels": ctx.config[STORED_PIXELS]}
    arguments |= {"heads": heads, "embeddings": config.embeddings}
    ctx.map_shards(ScoreWorker, arguments, ctx.shards("download"), on_gpu=True)


def select(ctx: Context) -> None:
    """Columns and rules to keep or drop, with the reason; global, since duplicates are, but one shard in memory."""
    shards = ctx.shards("download", "annotate", "score")
    names = [f"{shard.id:05d}.parquet" for shard in shards]
    files = [
        PairShard(shard.files["annotate.parquet"], shard.files["score.parquet"], shard.files["download.parquet"])
        for shard in shards
    ]
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:

        def write(place: int, table: pa.Table) -> None:
            write_table(table, Path(scratch) / names[place], "selection")
            storage.publish(Path(scratch) / names[place], ctx.path(names[place]))

        chosen = select_rows(files, ctx.config["select"], write, ctx.config["clip.min_similarity"])
    for example in chain.from_iterable(chosen.examples.values()):
        example["shard"] = shards[example["shard"]].id
    storage.write_json(ctx.path("funnel.json"), chosen.funnel)
    storage.write_json(ctx.path("examples.json"), chosen.examples)
    storage.write_json(ctx.path("quality.json"), _quality(ctx, shards, names))
    ctx.counters |= {"rows": chosen.rows, "kept": chosen.kept, "dropped": chosen.rows - chosen.kept}


def _quality(ctx: Context, shards: list[Shard], names: list[str]) -> dict[str, Any] | None:
    """How right the filters were; None for a list that does not say what is wrong with it."""
    downloads = [shard.files["download.parquet"] for shard in shards]
    if ctx.config["listing.source"] != "scenes":
        return None
    truths = [read_table(path, "download", ["truth"]) for path in downloads]
    return filter_quality(truths, [read_table(ctx.path(name), "selection", ["reason"]) for name in names])


class PackWorker:
    """Packs the kept images of a shard at every training resolution."""

    def __init__(self, config: PackConfig, max_pixels: int) -> None:
        self.config, self.max_pixels = config, max_pixels

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        """One Parquet file of the kept rows."""
        files = shard.files
        path = out / f"{shard.id:05d}.parquet"
        selection = files.get("select.parquet")
        return pack_shard(
            files["download.tar"], files["download.parquet"], selection, path, self.config, self.max_pixels
        )


def pack(ctx: Context) -> None:
    """Kept images as one column a training resolution."""
    arguments = {"config": ctx.config["pack"], "max_pixels": ctx.config[STORED_PIXELS]}
    ctx.map_shards(PackWorker, arguments, ctx.shards("download", "select"))


class EmbedWorker:
    """Embeds the captions of a pack shard."""

    def __init__(self, config: EmbedConfig, encoder: str) -> None:
        self.config = config
        self.encoder = load_encoder(storage.local_folder(encoder), config, device())

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        """One Parquet file, row-aligned with the pack shard."""
        return embed_shard(shard.files["pack.parquet"], out / f"{shard.id:05d}.parquet", self.encoder, self.config)


def embed(ctx: Context) -> None:
    """Kept captions to T5 embeddings at their true length, on GPUs where there are some."""
    arguments = {"config": ctx.config["embed"], "encoder": encoder_spec(ctx.inputs["encoder"])}
    ctx.map_shards(EmbedWorker, arguments, ctx.shards("pack"), on_gpu=True)
    # A manifest says the mean error of a caption as the codec stored it.
    summed = ctx.counters.pop("codec_error_ppm_sum", 0)
    ctx.counters["codec_error_ppm"] = round(summed / max(1, ctx.counters.get("distinct", 0)))
