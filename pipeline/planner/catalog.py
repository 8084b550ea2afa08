"""The machine catalog and the assumptions of a plan, read from YAML.

``table.yaml`` beside this file is the default. A user's file has the same sections or one of them: its machines replace
all default machines, its assumptions those of the same name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from dataprep.io.config import Config
from dataprep.io.errors import UserError
from dataprep.io.inputs import read_input
from dataprep.io.yaml_text import parse_yaml

SHIPPED = Path(__file__).with_name("table.yaml")


class Machine(Config):
    """A kind of machine. Without GPUs it computes on its cores; ``tflops`` and ``memory_gb`` are then the machine's."""

    gpus: int = Field(ge=0, description="GPUs per machine")
    device: str = Field(description="name of the GPU, or of the processor")
    memory_gb: float = Field(gt=0, description="memory of one GPU in 10^9 bytes; without GPUs the machine's")
    tflops: float = Field(gt=0, description="dense bf16 peak of one GPU; without GPUs the rate of fp32 matrix products")
    mfu: float = Field(gt=0, le=1, description="model FLOPs utilization of a training step of a denoiser")
    encode_mfu: float = Field(gt=0, le=1, description="the same for the forward pass of a frozen encoder")
    cores: int = Field(ge=1, description="CPU cores (vCPUs)")
    ram_gb: float = Field(gt=0, description="memory of the machine, for offloading")
    link_gb_s: float = Field(
        default=25.0, gt=0, description="GB/s between the GPUs of a machine, per GPU and direction"
    )
    network_gbit: float = Field(gt=0, description="Gbit/s between machines")
    internet_gbit: float = Field(gt=0, description="Gbit/s to the internet and the object store")
    price: float = Field(ge=0, description="dollars per hour, on demand or owned")
    spot: float | None = Field(None, ge=0, description="dollars per hour, interruptible; null: not offered")
    images_per_core: float | None = Field(
        default=None, gt=0, description="images decoded and resized per second and core; null: the assumption"
    )
    disk_mb_s: float | None = Field(None, gt=0, description="MB/s of disk writes; null: unknown")
    source: str = Field(description="source of the figures, and their date")

    @property
    def units(self) -> int:
        """Ranks per machine: one per GPU, or the machine itself."""
        return max(1, self.gpus)


class Assumptions(Config):
    """What a plan cannot know; printed with the plan, with the reasons given here."""

    urls: int = Field(
        default=1_000_000, ge=1, description="rows of the list, if neither the config nor a local file tells"
    )
    download_success: float = Field(
        default=0.75, gt=0, le=1, description="share of URLs that yield an image; web lists decay"
    )
    keep_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of downloaded pairs that the filters keep; varies, so measure a trial",
    )
    fetched_kb: float = Field(default=200.0, gt=0, description="kB downloaded per image")
    jpeg_bits: float = Field(
        default=2.5, gt=0, description="bits per pixel of a stored JPEG at quality 95; 2.2 for LAION-5B at 384 px"
    )
    png_bits: float = Field(default=14.0, gt=0, description="bits per pixel of a stored PNG of a photograph")
    aspect_area: float = Field(
        default=1.35, ge=1, description="area of a stored image over its centre square, if aspect is kept"
    )
    row_bytes: float = Field(default=120.0, ge=0, description="bytes of key, caption and Parquet per row")
    tar_bytes: float = Field(
        default=4000.0, ge=0, description="bytes of caption, metadata, headers and padding per image in a tar"
    )
    caption_tokens: float = Field(default=20.0, gt=0, description="T5 tokens per caption; web alt texts have about 20")
    image_tokens: float = Field(
        default=576.0, gt=0, description="tokens that the captioning model reads of an image; LLaVA-1.5 reads 576"
    )
    prompt_tokens: float = Field(default=60.0, ge=0, description="tokens of the instruction to the captioning model")
    answer_batch: float = Field(
        default=100.0,
        gt=0,
        description="answers written side by side for which a GPU computes as long as it reads the weights: 118 on an "
        "H100 and 82 on an H200 at 40% of their peak; fewer take as long",
    )
    padded_tokens: int = Field(default=64, ge=1, description="tokens of the longest caption of a micro batch")
    zstd_share: float = Field(
        default=0.86, gt=0, le=1, description="size of embeddings after zstd: benchmarks/results/embed.json"
    )
    distinct_captions: float = Field(
        default=0.9, gt=0, le=1, description="share of distinct captions, which are encoded once each"
    )
    download_images_per_core: float = Field(
        default=40.0,
        gt=0,
        description="images downloaded, resized and stored per second and core; 250 over loopback here "
        "(benchmarks/results/download.json), img2dataset 21 per vCPU on 100 machines",
    )
    images_per_core: float = Field(
        default=80.0,
        gt=0,
        description="images decoded and resized per second and core in annotate, score and pack, if the machine "
        "does not say",
    )
    cascade_mpixels: float = Field(
        default=0.65,
        gt=0,
        description="million pixels that a core searches per second for faces by annotate.faces.detector=cascade, of "
        "images shrunk until the smallest face has 24 pixels: benchmarks/results/detectors.json, on a loaded machine",
    )
    yunet_mpixels: float = Field(default=10.0, gt=0, description="the same by yunet, of whole images: assumed")
    db_mpixels: float = Field(
        default=1.1,
        gt=0,
        description="million pixels, annotate.text.side squared, that a core searches per second for text by "
        "annotate.text.detector=db: the same benchmark, with PP-OCRv4's small network",
    )
    east_mpixels: float = Field(default=0.2, gt=0, description="the same by east: assumed")
    select_us: float = Field(
        default=30.0,
        gt=0,
        description="microseconds of a core per row of select without near duplicates: assumed, twice the 14 of one "
        "process that exchanges nothing",
    )
    select_sort_ns: float = Field(
        default=100.0,
        gt=0,
        description="nanoseconds of a core per row and sort of the near-duplicate search, of which there are more the "
        "more rows there are: assumed",
    )
    select_row_kb: float = Field(
        default=2.9,
        ge=0,
        description="kB per row that select reads and writes in the run's storage, over all its steps, without hashes "
        "and features for the near-duplicate search: 2.9 in benchmarks.select_scaling",
    )
    jpeg_mpixels: float = Field(
        default=150.0,
        gt=0,
        description="million pixels of JPEG that a core decodes per second: benchmarks/results/host_budget.json",
    )
    png_mpixels: float = Field(default=50.0, gt=0, description="the same of packed PNGs, of photographs")
    gather_us: float = Field(
        default=30.0, ge=0, description="microseconds of a core to read and gather a training sample, without decoding"
    )
    unpack_gb_s: float = Field(
        default=1.0, gt=0, description="GB of stored embeddings that a core reads, decompresses and gathers per second"
    )
    memory_reserve: float = Field(
        default=0.08, ge=0, lt=1, description="share of GPU memory lost to allocator fragmentation"
    )
    memory_fixed_gb: float = Field(
        default=1.5, ge=0, description="GB of GPU memory for the CUDA context, NCCL and workspaces"
    )
    launch_ms: float = Field(
        default=30.0,
        ge=0,
        description="minimum milliseconds per micro batch on a GPU, for networks too small to fill it",
    )
    least_micro_batch: int = Field(
        default=4,
        ge=1,
        description="micro batch below which more sharding is preferred to a smaller micro batch",
    )
    network_share: float = Field(
        default=0.7, gt=0, le=1, description="share of the link rate that collectives and transfers reach"
    )
    offload_params_per_second: float = Field(
        default=1e9,
        gt=0,
        description="parameters per second and machine that an offloaded optimizer updates, PCIe included",
    )
    store_dollars_gb_month: float = Field(
        default=0.023, ge=0, description="object storage, dollars per GB and month (S3 standard, list price)"
    )
    failures_per_node_hour: float = Field(
        default=1.6e-4,
        ge=0,
        description="failures per machine and hour; Llama 3: 419 in 54 days on 2,048 machines of 8 H100",
    )
    spot_failures_per_node_hour: float = Field(
        default=0.01,
        ge=0,
        description="the same for interruptible machines: one in four days; varies by region and time",
    )
    repair_minutes: float = Field(default=30.0, ge=0, description="minutes until a lost machine is replaced")
    restart_minutes: float = Field(default=5.0, ge=0, description="minutes until a training group runs again")
    checkpoint_gb_s: float = Field(
        default=1.0, gt=0, description="GB/s per machine for copying and writing a checkpoint, if training waits for it"
    )


class MachineCatalog(Config):
    """Machines by name, and assumptions."""

    assumptions: Assumptions = Assumptions()
    machines: dict[str, Machine] = Field(min_length=1)


def load_table(path: str | None = None) -> MachineCatalog:
    """Returns the default catalog, with the sections of the YAML file at ``path`` instead of its own.

    Raises UserError naming the key, the value and the remedy.
    """
    tree = _read(str(SHIPPED))
    if path is not None:
        given = _read(path)
        if extra := set(given) - {"machines", "assumptions"}:
            raise UserError(f"{path}: {sorted(extra)[0]}: unknown section; there are machines and assumptions")
        if given.get("machines"):
            tree["machines"] = given["machines"]
        tree["assumptions"] = (tree.get("assumptions") or {}) | (given.get("assumptions") or {})
    return validate_table(tree, path or str(SHIPPED))


def validate_table(tree: dict[str, Any], name: str) -> MachineCatalog:
    """Returns the catalog of a parsed YAML tree; raises UserError for the first problem."""
    try:
        return MachineCatalog.model_validate(tree)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        valid = ", ".join(Machine.model_fields if "machines" in problem["loc"] else Assumptions.model_fields)
        hint = f"; valid keys: {valid}" if problem["type"] == "extra_forbidden" else ""
        value = "" if problem["type"] == "missing" else f"={problem['input']!r:.60}"
        raise UserError(f"{name}: {key}{value}: {problem['msg'].lower()}{hint}") from error


def find_machine(table: MachineCatalog, name: str) -> Machine:
    """Returns the machine ``name``; raises UserError if there is none."""
    if name not in table.machines:
        raise UserError(f"--machine {name}: not in the table; it has {', '.join(table.machines)}")
    return table.machines[name]


def _read(path: str) -> dict[str, Any]:
    tree = parse_yaml(read_input(path, "--machines", "`imagen-ray calibrate` writes one"), path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a table is a mapping with machines and assumptions, not {type(tree).__name__}")
    for section in ("machines", "assumptions"):
        if not isinstance(tree.get(section) or {}, dict):
            raise UserError(f"{path}: {section} is a mapping of names, not {type(tree[section]).__name__}")
    return tree
