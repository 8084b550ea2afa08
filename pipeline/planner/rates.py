"""Rows and bytes from stage to stage: assumed, or measured on an earlier run.

A 1% trial with the same config predicts the whole run better than any assumption:
``imagen-ray run CONFIG listing.limit=10000 run=runs/trial --until embed``, then ``imagen-ray plan CONFIG --measured
runs/trial``.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass, field, replace

import pyarrow.parquet as pq

from dataprep.download.config import DownloadConfig
from dataprep.images.pixel_encodings import PIXEL_ENCODINGS
from dataprep.io import storage
from dataprep.io.pack_format import pixels_column
from dataprep.io.wording import count_of
from dataprep.listing.config import SourceConfig
from dataprep.pack_config import PackConfig
from dataprep.text.embedding_codec import SCALE, STORED
from pipeline.config import RunConfig
from pipeline.planner.catalog import Assumptions
from pipeline.store.artifact import Artifact
from pipeline.store.run import Run

RAW_CHANNELS = 3
MICRO_BATCH = 16  # captions that are padded to the longest among them


@dataclass(frozen=True)
class Rates:
    """Shares and sizes; ``origin`` says by name which are measured and where."""

    urls: int
    success: float  # images per URL
    keep: float  # kept pairs per image
    tokens: float  # per caption
    padded: int  # tokens of the longest caption of a micro batch
    download_bytes: float  # per image, in tar and table
    pixel_bytes: dict[int, float]  # per image, by resolution
    pack_row_bytes: float  # per row of pack, without pixels
    embed_share: float  # stored over uncompressed size of the embedding values
    embed_row_bytes: float  # per row of embeddings, without values
    origin: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> float:
        """Downloaded images."""
        return self.urls * self.success

    @property
    def pairs(self) -> float:
        """Kept pairs."""
        return self.images * self.keep

    def embedding_bytes(self, width: int, codec: str, compressed: bool) -> float:
        """Returns the bytes of a caption's embedding, including its row's other columns."""
        return (
            count_plain_bytes(self.tokens, width, codec) * (self.embed_share if compressed else 1)
            + self.embed_row_bytes
        )


def count_plain_bytes(tokens: float, width: int, codec: str) -> float:
    """Returns the uncompressed bytes of ``tokens`` in a codec."""
    return tokens * (width * STORED[codec].itemsize + (SCALE.itemsize if codec == "int8" else 0))


def assume_rates(config: RunConfig, assumptions: Assumptions, urls: int | None = None) -> Rates:
    """Returns rates from config and assumptions; ``urls`` overrides the number of rows."""
    rows, origin = count_urls(config, assumptions) if urls is None else (urls, "--urls")
    pixels = {size: _estimate_pixel_bytes(size, config.pack, assumptions) for size in config.pack.resolutions}
    return Rates(
        rows,
        assumptions.download_success,
        assumptions.keep_share,
        min(assumptions.caption_tokens, config.embed.max_length),
        min(assumptions.padded_tokens, config.embed.max_length),
        _estimate_stored_bytes(config.download, assumptions),
        pixels,
        assumptions.row_bytes,
        assumptions.zstd_share,
        assumptions.row_bytes,
        {"urls": origin},
    )


def count_urls(config: RunConfig, assumptions: Assumptions) -> tuple[int, str]:
    """Returns the rows of the list and their origin: the config, local files, or the assumption."""
    listing = config.listing
    if listing.source == "scenes":
        return min(listing.scenes.count, listing.limit or listing.scenes.count), "listing.scenes.count"
    if config.subject is not None:
        kept = config.subject.class_images
        return round(kept / (1 - config.subject.share)) or 1, "subject.class_images and share"
    counted = [_count_rows(source) for source in listing.list_sources().values()]
    if any(rows is None for rows, _ in counted):
        return assumptions.urls, "assumed"
    return sum(rows or 0 for rows, _ in counted), " and ".join(dict.fromkeys(origin for _, origin in counted))


def _count_rows(source: SourceConfig) -> tuple[int | None, str]:
    """Returns the rows of a source, as far as the config or the footers of its files say, and where that is from."""
    found = sorted(glob.glob(source.path)) if source.path and storage.is_local(source.path) else []
    if source.source == "table" and found and all(path.endswith(".parquet") for path in found):
        rows = sum(pq.read_metadata(path).num_rows for path in found)
        return min(rows, source.limit or rows), f"counted in {count_of(len(found), 'file')}"
    return source.limit, "listing.limit"


def _estimate_pixel_bytes(size: int, config: PackConfig, assumptions: Assumptions) -> float:
    how = config.encoding_of(size)
    if how == "raw":
        return float(RAW_CHANNELS * size * size)
    return size * size * (assumptions.png_bits if PIXEL_ENCODINGS[how].lossless else assumptions.jpeg_bits) / 8


def _estimate_stored_bytes(config: DownloadConfig, assumptions: Assumptions) -> float:
    bits = assumptions.png_bits if config.encode_format == "png" else assumptions.jpeg_bits
    return count_stored_pixels(config, assumptions) * bits / 8 + assumptions.tar_bytes


def count_stored_pixels(config: DownloadConfig, assumptions: Assumptions) -> float:
    """Returns the mean number of pixels of a stored image."""
    return config.image_size**2 * (assumptions.aspect_area if config.resize_mode == "keep_ratio" else 1)


def measure_rates(rates: Rates, folder: str) -> Rates:
    """Returns ``rates`` updated by the finished stages of a run; raises UserError if there is no run at ``folder``."""
    artifacts = Run(folder).artifacts()
    where = f"measured in {folder}"
    found = rates
    if download := artifacts.get("download"):
        rows, images = download.manifest.counters["rows"], max(1, download.manifest.counters["success"])
        found = replace(found, success=images / rows, download_bytes=_sum_output_bytes(download) / images)
        found = replace(found, origin=found.origin | dict.fromkeys(("success", "download_bytes"), where))
    if select := artifacts.get("select"):
        counters = select.manifest.counters
        fetched = counters["rows"] * found.success
        found = replace(found, keep=counters["kept"] / fetched, origin=found.origin | {"keep": where})
    if pack := artifacts.get("pack"):
        found = _measure_pack(found, pack, where)
    if embed := artifacts.get("embed"):
        found = _measure_embed(found, embed, where)
    return found


def _measure_pack(rates: Rates, pack: Artifact, where: str) -> Rates:
    columns = count_column_bytes(pack)
    rows = max(1, pack.manifest.counters["rows"])
    pixels = {
        size: columns[pixels_column(size)] / rows if pixels_column(size) in columns else assumed
        for size, assumed in rates.pixel_bytes.items()
    }
    rest = _sum_output_bytes(pack) - sum(size for name, size in columns.items() if name.startswith("pixels_"))
    origin = rates.origin | dict.fromkeys(("pixel_bytes", "pack_row_bytes"), where)
    return replace(rates, pixel_bytes=pixels, pack_row_bytes=rest / rows, origin=origin)


def _measure_embed(rates: Rates, embed: Artifact, where: str) -> Rates:
    counters, columns = embed.manifest.counters, count_column_bytes(embed)
    rows, tokens = max(1, counters["captions"]), counters["tokens"]
    with storage.local_copy(embed.files()[0]) as local:
        table = pq.read_table(local, columns=["dim", "codec", "length"])
    first, lengths = table.slice(0, 1).to_pylist()[0], table["length"].to_pylist()
    longest = [max(lengths[start : start + MICRO_BATCH]) for start in range(0, len(lengths), MICRO_BATCH)]
    padded = round(sum(longest) / len(longest))
    values = columns["embedding"] + columns["scale"]
    share = values / max(1.0, count_plain_bytes(tokens, first["dim"], first["codec"]))
    origin = rates.origin | dict.fromkeys(("tokens", "padded", "embed_row_bytes"), where)
    rest = (_sum_output_bytes(embed) - values) / rows
    if share < 0.995:  # compressed; otherwise zstd's share stays assumed
        rates, origin = replace(rates, embed_share=share), origin | {"embed_share": where}
    return replace(rates, tokens=tokens / rows, padded=padded, embed_row_bytes=rest, origin=origin)


def count_column_bytes(artifact: Artifact) -> dict[str, int]:
    """Returns the stored bytes per Parquet column over all shards of an artifact."""
    total: dict[str, int] = {}
    for path in artifact.files():
        with storage.local_copy(path) as local:
            metadata = pq.read_metadata(local)
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                name = column.path_in_schema.partition(".")[0]
                total[name] = total.get(name, 0) + column.total_compressed_size
    return total


def _sum_output_bytes(artifact: Artifact) -> int:
    return sum(output.bytes for output in artifact.manifest.outputs)
