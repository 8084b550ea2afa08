"""How many rows go from stage to stage and how large they are: assumed, or measured in a run that has been made.

A trial of one per cent with the same config says better than any assumption what the whole will take:
``imagen-ray run CONFIG listing.limit=10000 run=runs/trial --until embed``, then ``imagen-ray plan CONFIG --measured
runs/trial``.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass, field, replace

import pyarrow.parquet as pq

from dataprep import storage
from dataprep.codec import SCALE, STORED
from dataprep.download import DownloadConfig
from dataprep.pack import PackConfig, pixels_column
from pipeline.config import RunConfig
from pipeline.planner.table import Assumptions
from pipeline.store import Artifact, Run

RAW_CHANNELS = 3
MICRO_BATCH = 16  # captions that are padded to the longest among them


@dataclass(frozen=True)
class Rates:
    """Shares and sizes; ``origin`` says of each by name whether it was assumed or where it was measured."""

    urls: int
    success: float  # pictures a URL
    keep: float  # kept pairs a picture
    tokens: float  # a caption
    padded: int  # tokens of the longest caption of a micro batch
    download_bytes: float  # a picture, in its tar and table
    pixel_bytes: dict[int, float]  # a picture, by resolution
    pack_row_bytes: float  # what a row of pack has beside its pixels
    embed_share: float  # stored size of the embeddings' values over their plain size
    embed_row_bytes: float  # what a row of embeddings has beside its values
    origin: dict[str, str] = field(default_factory=dict)

    @property
    def pictures(self) -> float:
        """Pictures that are fetched."""
        return self.urls * self.success

    @property
    def pairs(self) -> float:
        """Pairs that are kept."""
        return self.pictures * self.keep

    def embedding_bytes(self, width: int, codec: str, compressed: bool) -> float:
        """Bytes of a caption's embedding, with its row's other columns."""
        return plain_bytes(self.tokens, width, codec) * (self.embed_share if compressed else 1) + self.embed_row_bytes


def plain_bytes(tokens: float, width: int, codec: str) -> float:
    """Bytes of so many tokens in a codec, not compressed."""
    return tokens * (width * STORED[codec].itemsize + (SCALE.itemsize if codec == "int8" else 0))


def assumed_rates(config: RunConfig, assumptions: Assumptions, urls: int | None = None) -> Rates:
    """From the config and the table alone; ``urls`` replaces the number of rows."""
    rows, origin = count_urls(config, assumptions) if urls is None else (urls, "--urls")
    pixels = {size: _pixel_bytes(size, config.pack, assumptions) for size in config.pack.resolutions}
    return Rates(
        rows,
        assumptions.download_success,
        assumptions.keep_share,
        min(assumptions.caption_tokens, config.embed.max_length),
        min(assumptions.padded_tokens, config.embed.max_length),
        _stored_bytes(config.download, assumptions),
        pixels,
        assumptions.row_bytes,
        assumptions.zstd_share,
        assumptions.row_bytes,
        {"urls": origin},
    )


def count_urls(config: RunConfig, assumptions: Assumptions) -> tuple[int, str]:
    """Rows of the list, and how that is known: from the config, from files that are here, or assumed."""
    listing = config.listing
    if listing.source == "scenes":
        return min(listing.scenes.count, listing.limit or listing.scenes.count), "listing.scenes.count"
    found = sorted(glob.glob(listing.path)) if listing.path and storage.is_local(listing.path) else []
    if listing.source == "table" and found and all(path.endswith(".parquet") for path in found):
        rows = sum(pq.read_metadata(path).num_rows for path in found)
        return min(rows, listing.limit or rows), f"counted in {len(found)} files"
    if listing.limit:
        return listing.limit, "listing.limit"
    return assumptions.urls, "assumed"


def _pixel_bytes(size: int, config: PackConfig, assumptions: Assumptions) -> float:
    how = config.stored_in(size)
    if how == "raw":
        return float(RAW_CHANNELS * size * size)
    return size * size * (assumptions.png_bits if how == "png" else assumptions.jpeg_bits) / 8


def _stored_bytes(config: DownloadConfig, assumptions: Assumptions) -> float:
    bits = assumptions.png_bits if config.encode_format == "png" else assumptions.jpeg_bits
    area = config.image_size**2 * (assumptions.aspect_area if config.resize_mode == "keep_ratio" else 1)
    return area * bits / 8 + assumptions.tar_bytes


def measure_rates(rates: Rates, folder: str) -> Rates:
    """``rates`` with all that the finished stages of the run at ``folder`` show. UserError where there is no run."""
    artifacts = Run(folder).artifacts()
    where = f"measured in {folder}"
    found = rates
    if download := artifacts.get("download"):
        rows, pictures = download.manifest.counters["rows"], max(1, download.manifest.counters["success"])
        found = replace(found, success=pictures / rows, download_bytes=_size(download) / pictures)
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
    columns = column_bytes(pack)
    rows = max(1, pack.manifest.counters["rows"])
    pixels = {
        size: columns[pixels_column(size)] / rows if pixels_column(size) in columns else assumed
        for size, assumed in rates.pixel_bytes.items()
    }
    rest = _size(pack) - sum(size for name, size in columns.items() if name.startswith("pixels_"))
    origin = rates.origin | dict.fromkeys(("pixel_bytes", "pack_row_bytes"), where)
    return replace(rates, pixel_bytes=pixels, pack_row_bytes=rest / rows, origin=origin)


def _measure_embed(rates: Rates, embed: Artifact, where: str) -> Rates:
    counters, columns = embed.manifest.counters, column_bytes(embed)
    rows, tokens = max(1, counters["captions"]), counters["tokens"]
    with storage.local_copy(embed.files()[0]) as local:
        table = pq.read_table(local, columns=["dim", "codec", "length"])
    first, lengths = table.slice(0, 1).to_pylist()[0], table["length"].to_pylist()
    longest = [max(lengths[start : start + MICRO_BATCH]) for start in range(0, len(lengths), MICRO_BATCH)]
    padded = round(sum(longest) / len(longest))
    values = columns["embedding"] + columns["scale"]
    share = values / max(1.0, plain_bytes(tokens, first["dim"], first["codec"]))
    origin = rates.origin | dict.fromkeys(("tokens", "padded", "embed_row_bytes"), where)
    rest = (_size(embed) - values) / rows
    if share < 0.995:  # compressed: else it says nothing of what zstd would do
        rates, origin = replace(rates, embed_share=share), origin | {"embed_share": where}
    return replace(rates, tokens=tokens / rows, padded=padded, embed_row_bytes=rest, origin=origin)


def column_bytes(artifact: Artifact) -> dict[str, int]:
    """Stored bytes of each Parquet column over all shards of an artifact."""
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


def _size(artifact: Artifact) -> int:
    return sum(output.bytes for output in artifact.manifest.outputs)
