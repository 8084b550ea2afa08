"""The work of each stage but training, and its hours on a machine: those of its slowest resource."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from dataprep.filters.embedding_duplicates import count_clusters, make_vector_dtype
from dataprep.filters.hash_neighbours import HASH, plan_exchange
from dataprep.filters.pair_shards import GROUP_ROWS, MAX_GROUPS
from eval.sampling.config import SamplingConfig
from pipeline.config import RunConfig
from pipeline.planner.catalog import Assumptions, Machine
from pipeline.planner.detectors import estimate_detector_seconds
from pipeline.planner.encoders import CaptionerCost, ClipCost, TextCost
from pipeline.planner.rates import Rates
from pipeline.planner.training import BACKWARD_FROZEN
from pipeline.stages.base import Placement, Rows
from pipeline.stages.graph import STAGES
from pipeline.units import HOUR
from train.tasks.distillation_config import DistillationTrainingConfig

WRITTEN_AND_READ = 2  # times that what is exchanged passes the network
BACKWARD = 2  # forward passes' worth of operations of a backward pass


@dataclass(frozen=True)
class PlanFacts:
    """What the work and the storage of a stage are computed from."""

    config: RunConfig
    assumptions: Assumptions
    rates: Rates
    text: TextCost
    clip: ClipCost
    embedding_bytes: float  # of one caption
    parameters: dict[str, int]  # that each cascade stage trains
    exported: dict[str, int]  # parameters of each cascade stage's network
    sampling_flops: dict[str, float]  # of one evaluation of each cascade stage on a whole image
    captioner: CaptionerCost | None = None

    @property
    def image_bytes(self) -> float:
        """Bytes of all downloaded images."""
        return self.rates.images * self.rates.download_bytes

    @property
    def captions(self) -> float:
        """Captions of all kept pairs."""
        return self.rates.pairs * len(self.config.pack.captions)


@dataclass(frozen=True)
class Workload:
    """What a stage has to do, on cpu or gpu machines side by side."""

    pool: Literal["cpu", "gpu"]
    items: float  # rows or images
    images: float = 0.0  # decoded and resized, each on a core
    core_seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0  # over the link to the internet and the object store
    tasks: int | None = None  # at the same time, at most


@dataclass(frozen=True)
class StageHours:
    """Hours, and the resource that bounds them."""

    hours: float
    bound: str


def _plan_download(facts: PlanFacts) -> Workload:
    urls, assumptions = float(facts.rates.urls), facts.assumptions
    fetched = facts.rates.images * assumptions.fetched_kb * 1e3
    core_seconds = urls / assumptions.download_images_per_core
    return Workload("cpu", urls, core_seconds=core_seconds, bytes=fetched + facts.image_bytes)


def _plan_decoding(facts: PlanFacts) -> Workload:
    return Workload("cpu", facts.rates.images, images=facts.rates.images, bytes=facts.image_bytes)


def _plan_annotate(facts: PlanFacts) -> Workload:
    config = facts.config
    seconds = estimate_detector_seconds(config.annotate, config.download, facts.assumptions)
    return replace(_plan_decoding(facts), core_seconds=facts.rates.images * seconds)


def _plan_encoder(facts: PlanFacts) -> Workload | None:
    config = facts.config.encoder.pretrain
    if config is None:
        return None
    samples = config.steps * config.batch_size
    # T5's decoder reads about as many tokens as the encoder; BERT has none.
    readers = 2 if config.task == "t5" else 1
    tokens = samples * min(facts.assumptions.caption_tokens, config.max_tokens)
    return Workload("gpu", samples, flops=(1 + BACKWARD) * readers * tokens * facts.text.flops_per_token)


def _plan_clip(facts: PlanFacts) -> Workload | None:
    config = facts.config.clip.train
    if config is None:
        return None
    samples = config.steps * config.batch_size
    return Workload("gpu", samples, flops=float(1 + BACKWARD) * samples * facts.clip.flops_per_pair)


def _plan_score(facts: PlanFacts) -> Workload:
    images = facts.rates.images
    return Workload("gpu", images, images=images, flops=images * facts.clip.flops_per_pair, bytes=facts.image_bytes)


def _plan_select(facts: PlanFacts) -> Workload:
    urls, images, rules = float(facts.rates.urls), facts.rates.images, facts.config.select
    core_seconds, flops = urls * facts.assumptions.select_us * 1e-6, 0.0
    moved = urls * facts.assumptions.select_row_kb * 1e3
    if rules.near_duplicate_bits is not None and images:
        exchange = plan_exchange(rules.near_duplicate_bits, round(images))
        core_seconds += images * exchange.sorts * facts.assumptions.select_sort_ns * 1e-9
        moved += images * len(exchange.prefixes) * HASH.itemsize * WRITTEN_AND_READ
    if rules.near_duplicate_cosine is not None and images:
        probes = rules.near_duplicate_probes
        clusters = count_clusters(round(images), probes, rules.near_duplicate_clusters)
        compared = clusters + (probes - 0.5) * images / clusters  # centroids, and rows of the clusters
        flops = images * compared * 2 * facts.clip.width
        moved += images * probes * make_vector_dtype(facts.clip.width).itemsize * WRITTEN_AND_READ
    tasks = min(MAX_GROUPS, ceil(urls / GROUP_ROWS))
    return Workload("cpu", urls, core_seconds=core_seconds, flops=flops, bytes=moved, tasks=tasks)


def _plan_caption(facts: PlanFacts) -> Workload | None:
    """Every source is taken to want all captions that any source is trained on; an answer is as long as it may be."""
    if facts.captioner is None:
        return None
    config, assumptions, pairs = facts.config.caption, facts.assumptions, facts.rates.pairs
    wanted = {name for captions in facts.config.list_captions().values() for name in captions}
    prompts = [prompt for name, prompt in config.prompts.items() if name in wanted]
    read = (assumptions.image_tokens + assumptions.prompt_tokens) * len(prompts)
    written = sum(prompt.max_tokens for prompt in prompts) * max(1.0, assumptions.answer_batch / config.batch_size)
    flops = pairs * 2 * facts.captioner.parameters * (read + written)
    return Workload("gpu", pairs * len(prompts), images=pairs, flops=flops, bytes=facts.image_bytes)


def _plan_pack(facts: PlanFacts) -> Workload:
    rates = facts.rates
    packed = rates.pairs * (sum(rates.pixel_bytes.values()) + rates.pack_row_bytes)
    return Workload("cpu", rates.pairs, images=rates.pairs, bytes=facts.image_bytes + packed)


def _plan_text_tuning(facts: PlanFacts) -> Workload | None:
    """The image model is taken for the first of the cascade; nothing frozen needs gradients of its weights."""
    config = facts.config.text_tuning
    if config is None:
        return None
    samples, denoise = config.steps * config.batch_size, next(iter(facts.sampling_flops.values()))
    encode = facts.rates.tokens * facts.text.flops_per_token
    return Workload("gpu", samples, flops=(1 + BACKWARD_FROZEN) * samples * (denoise + encode))


def _plan_embed(facts: PlanFacts) -> Workload:
    tokens = facts.captions * facts.assumptions.distinct_captions * facts.rates.tokens
    stored = facts.captions * facts.embedding_bytes
    return Workload("gpu", facts.captions, flops=tokens * facts.text.flops_per_token, bytes=stored)


def _plan_sample(facts: PlanFacts) -> Workload:
    config, settings = facts.config, facts.config.sample
    scenes = config.listing.source == "scenes"
    shown = (len(settings.prompts) + (settings.show if scenes else 0)) * settings.candidates
    evaluated = settings.evaluate * settings.candidates if scenes or settings.evaluate_prompts else shown
    judged = list(config.cascade())
    if settings.evaluate_at:
        judged = judged[: judged.index(settings.evaluate_at) + 1]
    flops = 0.0
    for name in config.denoisers():
        is_prior, training = name not in config.cascade(), config.train[name]
        if isinstance(training, DistillationTrainingConfig):
            evaluations = training.distillation.steps
        else:
            evaluations = _count_evaluations(facts, name)
        if is_prior:
            evaluations *= settings.stages.get(name, SamplingConfig()).candidates
        flops += (shown + (evaluated if is_prior or name in judged else 0)) * evaluations * facts.sampling_flops[name]
    return Workload("gpu", shown + evaluated, flops=flops)


def _count_evaluations(facts: PlanFacts, name: str) -> int:
    """Returns how often a stage's network runs for an image; guided: with and without the caption."""
    sampling = facts.config.sample.stages.get(name, SamplingConfig())
    return sampling.count_evaluations() * (1 if sampling.guidance == 1 else 2)


def _plan_schedule(facts: PlanFacts) -> Workload | None:
    fit = facts.config.sample.fit
    if fit is None:
        return None
    flops = 0.0
    for name in fit.stages:
        each = 1 if facts.config.sample.stages.get(name, SamplingConfig()).guidance == 1 else 2
        flops += fit.samples * fit.levels * each * facts.sampling_flops[name]
    return Workload("gpu", fit.samples * len(fit.stages), flops=flops)


# Stage -> its work; None if the config does not have the work. train.* is planned apart.
WORKLOADS: dict[str, Callable[[PlanFacts], Workload | None]] = {
    "download": _plan_download,
    "annotate": _plan_annotate,
    "encoder": _plan_encoder,
    "clip": _plan_clip,
    "score": _plan_score,
    "select": _plan_select,
    "caption": _plan_caption,
    "pack": _plan_pack,
    "text_tuning": _plan_text_tuning,
    "embed": _plan_embed,
    "schedule": _plan_schedule,
    "sample": _plan_sample,
}


def plan_workloads(facts: PlanFacts) -> dict[str, Workload]:
    """Returns the work by stage, in the pipeline's order.

    A stage that maps CPU workers over all pairs and has no entry in `WORKLOADS` counts as one that decodes every image.
    """
    planned: dict[str, Workload | None] = {}
    for name, kind in STAGES.items():
        maps_pairs = kind.rows is Rows.ALIGNED and kind.placement(facts.config) is Placement.SHARDS
        if plan := WORKLOADS.get(name, _plan_decoding if maps_pairs else None):
            planned[name] = plan(facts)
    return {name: work for name, work in planned.items() if work is not None}


def list_hours(work: Workload, machine: Machine, nodes: int, assumptions: Assumptions) -> dict[str, float]:
    """Returns the hours on ``nodes`` machines for which each resource is busy."""
    cores = min(machine.cores * nodes, work.tasks or machine.cores * nodes)
    per_core = machine.images_per_core or assumptions.images_per_core
    speed = machine.units * nodes * machine.tflops * 1e12 * machine.encode_mfu
    core_seconds = work.core_seconds + work.images / per_core
    link = machine.internet_gbit * nodes * 1e9 / 8 * assumptions.network_share
    return {
        "CPU": core_seconds / cores / HOUR,
        "GPU" if machine.gpus else "arithmetic": work.flops / speed / HOUR,
        "network": work.bytes / link / HOUR,
    }


def estimate_hours(work: Workload, machine: Machine, nodes: int, assumptions: Assumptions) -> StageHours:
    """Returns the hours on ``nodes`` machines. Cores, GPUs and link work concurrently: the slowest counts."""
    return find_slowest(list_hours(work, machine, nodes, assumptions))


def find_slowest(hours: Mapping[str, float]) -> StageHours:
    """Returns the hours of the resource that is busy longest, and its name."""
    bound = max(hours, key=lambda name: hours[name])
    return StageHours(hours[bound], bound)
