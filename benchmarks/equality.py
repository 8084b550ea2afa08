"""That a run is the same run however it is computed: ``python -m benchmarks.equality``.

One small denoiser trained for 60 updates in every combination of ZeRO stage, ranks (gloo, CPU) and accumulation, whole
and interrupted at five points, resumed at the same and at another world size, stage and accumulation. Each is compared
with one process without ZeRO that was not interrupted: the loss of every update, and the sample positions.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.result import claim, write
from dataprep.storage import read_json_lines
from train.config import TrainConfig
from train.data import Batch, SampleRandom, Stream
from train.loop import train

STEPS, EVERY, BATCH, ROWS, WIDTH = 60, 7, 8, 50, 8
STOPS = (9, 20, 31, 42, 53)  # 2 to 6 updates after a checkpoint
TOLERANCE = 1e-5  # relative, of a loss: fp32 sums in another order, over 60 updates
Job = dict[str, Any]  # folder, world, stop (None: to the end), and what TrainConfig is given


class Vectors(Stream):
    """``ROWS`` vectors of ``WIDTH`` numbers."""

    def __init__(self) -> None:
        super().__init__(ROWS, 0, BATCH)
        self.x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        return {"key": [str(row) for row in rows], "x": self.x[rows]}


class Denoise:
    """Takes noise off the vectors; notes the positions that it saw. 569 parameters, so that no share is even."""

    def __init__(self, seen: Path) -> None:
        self.seen = seen

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 33), nn.SiLU(), nn.Linear(33, WIDTH))

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        with open(self.seen, "a", encoding="utf-8") as file:
            file.write(json.dumps([random.step, random.indices]) + "\n")
        error = model(batch["x"] + random.normal("noise", WIDTH)) - batch["x"]
        return error.square().mean(), {}

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        save_file(weights, Path(folder) / "weights.safetensors")


class Interrupted(Exception):  # noqa: N818
    """Stands for a kill: nothing is saved on the way out."""


def one(job: Job) -> None:
    """This rank's part of a job."""

    def on_event(event: dict[str, Any]) -> None:
        if event["kind"] == "log" and event["row"]["step"] == job["stop"]:
            raise Interrupted

    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"steps": STEPS, "batch_size": BATCH, "checkpoint_every": EVERY, "log_every": 1, "warmup_steps": 5}
    config = TrainConfig(**(settings | job["settings"]))
    task = Denoise(folder / f"seen-{dist.get_rank()}.jsonl")
    with contextlib.suppress(Interrupted):
        train(task, config, Vectors(), str(folder), 0, on_event=on_event)


def ranks(rank: int, world: int, port: int, jobs: list[Job]) -> None:
    """One rank: every job of this world size, one after another."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    for job in jobs:
        one(job)
        dist.barrier()
    dist.destroy_process_group()


def run_all(jobs: list[Job]) -> None:
    """Runs the jobs, those of one world size in one group of processes."""
    for world, part in itertools.groupby(sorted(jobs, key=lambda job: job["world"]), key=lambda job: job["world"]):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        mp.spawn(ranks, (world, port, list(part)), nprocs=world)


def losses(folder: Path) -> np.ndarray:
    """The loss of every update, float64 (STEPS,)."""
    return np.array([row["loss"] for row in read_json_lines(str(folder / "log.jsonl"))])


def samples(folder: Path) -> dict[int, set[int]]:
    """step -> the stream positions that its ranks and micro-batches saw, each time that it was run."""
    seen: dict[int, set[int]] = {}
    for path in folder.glob("seen-*.jsonl"):
        for step, positions in read_json_lines(str(path)):
            seen.setdefault(step, set()).update(positions)
    return seen


def cases() -> list[tuple[str, list[Job]]]:
    """Name and the jobs, in order, of every row of the table."""
    table: list[tuple[str, list[Job]]] = []
    names = {}
    for stage, world, accumulation in itertools.product((0, 1, 2, 3), (1, 2, 4), (1, 2)):
        name = names[stage, world, accumulation] = f"zero {stage}, {world} ranks, accumulation {accumulation}"
        settings = {"zero_stage": stage, "accumulation": accumulation}
        table.append((name, [{"world": world, "stop": None, "settings": settings}]))
    # Two combinations a point, so that between them all stages, sizes and accumulations are interrupted.
    for at, stop in enumerate((*STOPS, *STOPS)):
        stage, world, accumulation = at % 4, (1, 2, 4)[at % 3], 1 + at // 5
        settings, name = {"zero_stage": stage, "accumulation": accumulation}, names[stage, world, accumulation]
        first: Job = {"world": world, "stop": stop, "settings": settings}
        table.append((f"{name}; stopped at {stop}", [dict(first), {**first, "stop": None}]))
        moved, other = {1: 2, 2: 4, 4: 1}[world], {"zero_stage": (stage + 1) % 4, "accumulation": 3 - accumulation}
        then = names[other["zero_stage"], moved, other["accumulation"]]
        jobs = [dict(first), {"world": moved, "stop": None, "settings": other}]
        table.append((f"{name}; stopped at {stop}, then {then}", jobs))
    many = [{"world": 2, "stop": stop, "settings": {"zero_stage": 2}} for stop in (*STOPS, None)]
    table.append(("zero 2, 2 ranks, accumulation 1; stopped at all five", many))
    return table


def measure(folder: Path, table: list[tuple[str, list[Job]]]) -> list[dict[str, Any]]:
    """Runs the table; a row each: the largest error of a loss (relative) and of an average, exactness, samples."""
    reference = {"folder": str(folder / "reference"), "world": 1, "stop": None, "settings": {"zero_stage": 0}}
    for number, (_, jobs) in enumerate(table):
        for job in jobs:
            job["folder"] = str(folder / f"{number:03d}")
    run_all([reference] + [jobs[0] for _, jobs in table])
    for at in range(1, max(len(jobs) for _, jobs in table)):
        run_all([jobs[at] for _, jobs in table if len(jobs) > at])
    right, found = losses(folder / "reference"), []
    weights = load_file(folder / "reference/export/weights.safetensors")
    positions = {step: set(range(step * BATCH, (step + 1) * BATCH)) for step in range(STEPS)}
    whole: dict[str, int] = {name: number for number, (name, _) in enumerate(table)}
    for number, (name, jobs) in enumerate(table):
        here = folder / f"{number:03d}"
        ours, averages = losses(here), load_file(here / "export/weights.safetensors")
        row = {"case": name, "loss_error": float(np.max(np.abs(ours - right) / right))}
        row["ema_error"] = max(float((averages[key] - weights[key]).abs().max()) for key in weights)
        row["same_samples"] = samples(here) == positions
        if len(jobs) > 1 and all(
            job["world"] == jobs[0]["world"] and job["settings"] == jobs[0]["settings"] for job in jobs
        ):
            row["bit_identical"] = bool(np.array_equal(ours, losses(folder / f"{whole[name.split(';')[0]]:03d}")))
        found.append(row)
    return found


def main() -> None:
    """Measures and writes the results."""
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), cases())
    for row in rows:
        exact = {True: "bit-identical to the whole run", False: "NOT identical", None: ""}[row.get("bit_identical")]
        same = "same samples" if row["same_samples"] else "OTHER SAMPLES"
        print(f"{row['case']:<100} loss {row['loss_error']:.1e}  ema {row['ema_error']:.1e}  {same}  {exact}")
    exact = [row["bit_identical"] for row in rows if "bit_identical" in row]
    claims = [
        claim(
            "largest relative error of any loss, any case", max(r["loss_error"] for r in rows) / 1e-6, "1e-6", 10, True
        ),
        claim("largest error of any exported average", max(r["ema_error"] for r in rows) / 1e-6, "1e-6", 10, True),
        claim(
            "cases with the same samples at every step", float(np.mean([r["same_samples"] for r in rows])), "share", 1
        ),
        claim("resumed at the same size, bit-identical to the whole run", float(np.mean(exact)), "share", 1),
    ]
    write("equality", rows, claims, ("torch", "deepspeed"), tolerance=TOLERANCE, steps=STEPS)


if __name__ == "__main__":
    main()
