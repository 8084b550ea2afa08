"""The table that a plan is made from: machines with their prices and speeds, and assumptions; read from YAML.

The one that is shipped is ``table.yaml`` beside this file. A user's file holds the same sections, or some of them:
its machines stand in the place of the shipped ones, its assumptions replace those of the same name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from dataprep import storage
from dataprep.schema import Config, UserError
from pipeline.config import parse_yaml

SHIPPED = Path(__file__).with_name("table.yaml")


class Machine(Config):
    """A kind of machine. One without GPUs computes on its cores: ``tflops`` and ``memory_gb`` are then its own."""

    gpus: int = Field(ge=0, description="GPUs of a machine")
    device: str = Field(description="what computes: the GPU's name, or the processor's")
    memory_gb: float = Field(gt=0, description="memory of one GPU, 10^9 bytes; without GPUs the machine's")
    tflops: float = Field(gt=0, description="dense peak of one GPU at bf16; without GPUs what fp32 products reach")
    mfu: float = Field(gt=0, le=1, description="share of it that a training step of a U-Net reaches")
    encode_mfu: float = Field(gt=0, le=1, description="the same of a frozen encoder's forward pass")
    cores: int = Field(ge=1, description="CPU cores (vCPUs)")
    ram_gb: float = Field(gt=0, description="memory of the machine, for what is offloaded")
    link_gb_s: float = Field(default=25.0, gt=0, description="GB/s between GPUs of the machine, each way, a GPU")
    network_gbit: float = Field(gt=0, description="Gbit/s between machines")
    internet_gbit: float = Field(gt=0, description="Gbit/s to the internet, and to the object store")
    price: float = Field(ge=0, description="dollars an hour, on demand or owned")
    spot: float | None = Field(default=None, ge=0, description="dollars an hour, interruptible; null: not offered")
    images_per_core: float | None = Field(
        default=None, gt=0, description="pictures decoded and resized a second and core; null: as assumed"
    )
    disk_mb_s: float | None = Field(default=None, gt=0, description="MB/s that the disk writes; null: not looked at")
    source: str = Field(description="where the figures are from, and of when")

    @property
    def units(self) -> int:
        """What trains as one rank each: GPUs, or the machine itself."""
        return max(1, self.gpus)


class Assumptions(Config):
    """What a plan cannot know. Each is printed beside the plan, with the reason that is given here."""

    urls: int = Field(
        default=1_000_000, ge=1, description="rows of the list, where neither the config nor a file says how many"
    )
    download_success: float = Field(
        default=0.75, gt=0, le=1, description="share of URLs that give a picture; lists of the web age"
    )
    keep_share: float = Field(
        default=0.5, gt=0, le=1, description="share of fetched pairs that the rules keep; they differ: measure a trial"
    )
    fetched_kb: float = Field(
        default=200.0, gt=0, description="kB fetched from the web a picture, before it is resized"
    )
    jpeg_bits: float = Field(
        default=2.5, gt=0, description="bits a pixel of a stored JPEG at quality 95; LAION-5B at 384 px came to 2.2"
    )
    png_bits: float = Field(default=14.0, gt=0, description="bits a pixel of a stored PNG of a photograph")
    aspect_area: float = Field(
        default=1.35, ge=1, description="area of a stored picture over its centre square, where the ratio is kept"
    )
    row_bytes: float = Field(default=120.0, ge=0, description="bytes of key, caption and Parquet a row of an artifact")
    tar_bytes: float = Field(
        default=4000.0, ge=0, description="bytes of caption, metadata, headers and padding a picture in a tar"
    )
    caption_tokens: float = Field(
        default=20.0, gt=0, description="T5 tokens of a caption; alternative texts of the web have about 20"
    )
    padded_tokens: int = Field(default=64, ge=1, description="tokens of the longest caption of a micro batch")
    zstd_share: float = Field(
        default=0.86, gt=0, le=1, description="embeddings' size after zstd: benchmarks/results/embed.json"
    )
    distinct_captions: float = Field(
        default=0.9, gt=0, le=1, description="share of captions that are encoded, once each"
    )
    download_images_per_core: float = Field(
        default=40.0,
        gt=0,
        description="pictures fetched, resized and stored a second and core; 159 over loopback here "
        "(benchmarks/results/download.json), img2dataset 21 a vCPU on 100 machines",
    )
    images_per_core: float = Field(
        default=80.0,
        gt=0,
        description="pictures decoded and resized a second and core, in annotate, score and pack, where a machine's "
        "line says nothing",
    )
    select_rows_per_second: float = Field(
        default=35_000.0,
        gt=0,
        description="rows that select judges a second, on the driver: 14 microseconds each, 15 more to find duplicates "
        "(benchmarks/results/data_scaling.json)",
    )
    memory_reserve: float = Field(
        default=0.08, ge=0, lt=1, description="share of a GPU's memory lost to fragments of the allocator"
    )
    memory_fixed_gb: float = Field(
        default=1.5, ge=0, description="GB of a GPU that the CUDA context, NCCL and work spaces take"
    )
    launch_ms: float = Field(
        default=30.0,
        ge=0,
        description="milliseconds of a GPU's pass over a micro batch at least: a small network does not fill it",
    )
    least_micro_batch: int = Field(
        default=4,
        ge=1,
        description="samples a GPU below which more sharding is taken rather than a smaller micro batch",
    )
    network_share: float = Field(
        default=0.7, gt=0, le=1, description="share of a link's rate that collectives and transfers reach"
    )
    offload_params_per_second: float = Field(
        default=1e9, gt=0, description="parameters a second and machine that offloaded optimizers update, PCIe included"
    )
    store_dollars_gb_month: float = Field(
        default=0.023, ge=0, description="object storage, dollars a GB and month (S3 standard, list price)"
    )
    failures_per_node_hour: float = Field(
        default=1.6e-4,
        ge=0,
        description="a machine's failures an hour; Llama 3: 419 in 54 days on 2,048 machines of 8 H100",
    )
    spot_failures_per_node_hour: float = Field(
        default=0.01, ge=0, description="the same of interruptible machines: one in four days; by region and hour"
    )
    repair_minutes: float = Field(default=30.0, ge=0, description="until a lost machine is replaced")
    restart_minutes: float = Field(
        default=5.0, ge=0, description="until a training group stands again once its machines are there"
    )
    checkpoint_gb_s: float = Field(
        default=1.0, gt=0, description="GB/s a machine copies and writes a checkpoint with, where training waits for it"
    )


class Table(Config):
    """Machines by name, and assumptions."""

    assumptions: Assumptions = Assumptions()
    machines: dict[str, Machine] = Field(min_length=1)


def load_table(path: str | None = None) -> Table:
    """The shipped table, with the sections of the YAML file at ``path`` in the place of its own.

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


def validate_table(tree: dict[str, Any], name: str) -> Table:
    """The typed table of a plain tree; the first problem is raised as a UserError."""
    try:
        return Table.model_validate(tree)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        valid = ", ".join(Machine.model_fields if "machines" in problem["loc"] else Assumptions.model_fields)
        hint = f"; valid keys: {valid}" if problem["type"] == "extra_forbidden" else ""
        value = "" if problem["type"] == "missing" else f"={problem['input']!r:.60}"
        raise UserError(f"{name}: {key}{value}: {problem['msg'].lower()}{hint}") from error


def machine_named(table: Table, name: str) -> Machine:
    """The machine of that name; UserError where there is none."""
    if name not in table.machines:
        raise UserError(f"--machine {name}: not in the table; it has {', '.join(table.machines)}")
    return table.machines[name]


def _read(path: str) -> dict[str, Any]:
    if not storage.exists(path):
        raise UserError(f"--machines {path}: no such file; `imagen-ray calibrate` writes one")
    tree = parse_yaml(storage.read_bytes(path), path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a table is a mapping with machines and assumptions, this is {type(tree).__name__}")
    for section in ("machines", "assumptions"):
        if not isinstance(tree.get(section) or {}, dict):
            raise UserError(f"{path}: {section} is a mapping of names, not {type(tree[section]).__name__}")
    return tree
