"""CPU time that a training stage asks of a machine per sample: decoding and gathering, in the loader's threads.

The training thread's part is not counted: on a GPU it launches kernels, fewer per sample the larger the batch is
(benchmarks/results/host_budget.json).
"""

from __future__ import annotations

from dataprep.images.pixel_encodings import (
    FULL_COLOUR_BELOW,
    PIXEL_ENCODINGS,
    RESTARTS_FROM,
    choose_restart_interval,
)
from dataprep.pack_config import PackConfig
from pipeline.config import NetworkTraining
from pipeline.planner.catalog import Assumptions
from train.loader.config import MOST_THREADS


def estimate_host_ms(
    config: NetworkTraining, pack: PackConfig, embedding_bytes: float, assumptions: Assumptions
) -> float:
    """Returns milliseconds of one core per training sample; ``embedding_bytes``: of its caption, as stored."""
    ms = assumptions.gather_us / 1e3 + embedding_bytes / (assumptions.unpack_gb_s * 1e6)
    for size in config.stored_sizes():
        side = size if config.crop is None else config.crop * size // config.resolution
        encoding = pack.encoding_of(size)
        if encoding == "raw":
            continue
        rate = assumptions.png_mpixels if PIXEL_ENCODINGS[encoding].lossless else assumptions.jpeg_mpixels
        ms += count_decoded_pixels(size, side, encoding) / (rate * 1e3)
    return ms


def count_decoded_pixels(size: int, side: int, encoding: str) -> float:
    """Returns the mean number of pixels that a crop of ``side`` decodes of an image of ``size``, both squares.

    A JPEG's restart intervals that the crop touches (`train.loader.jpeg_crop`); of other files all.
    """
    if side == size or encoding != "jpeg" or size < RESTARTS_FROM:
        return float(size * size)
    mcu = 8 if size < FULL_COLOUR_BELOW else 16
    interval = mcu * choose_restart_interval(size, mcu)
    return float(min(size, side + interval) * min(size, side + mcu))


def loader_cores(config: NetworkTraining, cores: int, ranks: int) -> float:
    """Returns the cores of a machine that load for its ``ranks`` ranks: each rank's threads, at most its share."""
    share = cores / ranks
    threads = config.workers if config.workers is not None else max(1.0, min(MOST_THREADS, share - 1))
    return ranks * min(max(1, threads), share)
