"""The work of each data stage and of sampling, and its hours on a machine: those of what holds it up."""

from __future__ import annotations

from dataclasses import dataclass

from eval.cascade import SamplingConfig
from pipeline.config import RunConfig
from pipeline.planner.encoders import ClipCost, TextCost
from pipeline.planner.rates import Rates
from pipeline.planner.table import Assumptions, Machine
from pipeline.planner.units import HOUR


@dataclass(frozen=True)
class Work:
    """What a stage has to do. ``pool``: "cpu" or "gpu" machines side by side, "driver" one core of one machine."""

    stage: str
    pool: str
    items: float  # rows or pictures
    images: float = 0.0  # pictures that are decoded and resized, each on a core
    core_seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0  # over the link to the internet and the object store


@dataclass(frozen=True)
class Hours:
    """How long, and what holds it up."""

    hours: float
    bound: str


def data_work(
    config: RunConfig, rates: Rates, text: TextCost, clip: ClipCost, embedding_bytes: float, assumptions: Assumptions
) -> list[Work]:
    """download, annotate, encoder, clip, score, select, pack and embed, in the pipeline's order."""
    urls, pictures, pairs = float(rates.urls), rates.pictures, rates.pairs
    images = pictures * rates.download_bytes
    captions = pairs * (1 + len(config.pack.captions))
    encoded = captions * assumptions.distinct_captions * rates.tokens
    packed = pairs * (sum(rates.pixel_bytes.values()) + rates.pack_row_bytes)
    fetching = urls / assumptions.download_images_per_core
    found = [
        Work("download", "cpu", urls, 0, fetching, 0, pictures * assumptions.fetched_kb * 1e3 + images),
        Work("annotate", "cpu", pictures, pictures, 0, 0, images),
    ]
    if (own := config.encoder.pretrain) is not None:  # the decoder spells about as much as the encoder reads
        tokens = own.steps * own.batch_size * min(assumptions.caption_tokens, own.max_tokens)
        found.append(Work("encoder", "gpu", own.steps * own.batch_size, 0, 0, 3 * 2 * tokens * text.flops_a_token))
    if (small := config.clip.train) is not None:
        seen = small.steps * small.batch_size
        found.append(Work("clip", "gpu", seen, 0, 0, 3.0 * seen * clip.flops_a_pair))
    return [
        *found,
        Work("score", "gpu", pictures, pictures, 0, pictures * clip.flops_a_pair, images),
        Work("select", "driver", urls, 0, urls / assumptions.select_rows_per_second),
        Work("pack", "cpu", pairs, pairs, 0, 0, images + packed),
        Work("embed", "gpu", captions, 0, 0, encoded * text.flops_a_token, captions * embedding_bytes),
    ]


def sample_work(config: RunConfig, full_flops: dict[str, float]) -> Work:
    """The stage that draws; ``full_flops`` are those of one evaluation of each cascade stage on a whole picture."""
    settings = config.sample
    scenes = config.listing.source == "scenes"
    shown = (len(settings.prompts) + (settings.show if scenes else 0)) * settings.candidates
    judged = settings.evaluate * settings.candidates if scenes or settings.evaluate_prompts else shown
    names = list(config.train)
    last = names.index(settings.evaluate_at) if settings.evaluate_at else len(names) - 1
    flops = 0.0
    for place, name in enumerate(names):
        sampling = settings.stages.get(name, SamplingConfig())
        evaluations = sampling.steps * (1 if sampling.guidance == 1 else 2)  # guided: with the caption and without
        flops += (shown + (judged if place <= last else 0)) * evaluations * full_flops[name]
    return Work("sample", "gpu", shown + judged, 0, 0, flops)


def work_hours(work: Work, machine: Machine, nodes: int, assumptions: Assumptions) -> Hours:
    """On so many machines: cores, GPUs and the link work at once, so the slowest of them counts."""
    cores = machine.cores * nodes
    per_core = machine.images_per_core or assumptions.images_per_core
    speed = machine.units * nodes * machine.tflops * 1e12 * machine.encode_mfu
    core_seconds = work.core_seconds + work.images / per_core
    link = machine.internet_gbit * nodes * 1e9 / 8 * assumptions.network_share
    parts = {
        "CPU": core_seconds / (1 if work.pool == "driver" else cores),
        "GPU" if machine.gpus else "arithmetic": work.flops / speed,
        "network": work.bytes / link,
    }
    bound = max(parts, key=lambda name: parts[name])
    return Hours(parts[bound] / HOUR, bound)
