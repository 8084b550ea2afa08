"""That a run is the same run however it is computed: ``python -m benchmarks.equality [PART]``.

With PART only the cases with it in their name, such as ``"ZeRO 3, 4 ranks"``; the result keeps its rows of the others.

One small denoiser trained for 60 updates in every combination of ZeRO stage, ranks (gloo, CPU) and accumulation: whole;
interrupted at five points and each time resumed as it was; interrupted at the same points and each time resumed at
another world size; and with everything changed at each resume. An interruption saves nothing on the way out. Every run
is compared with one process without ZeRO that was not interrupted: the loss of every update, the exported average, and
the sample positions of every update; one that was resumed as it was, with the whole run of its kind, bit by bit.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks import ranks
from benchmarks.result import claim, rows_of, write
from dataprep.storage import read_json_lines
from train.config import TrainConfig
from train.data import Batch, SampleRandom, Stream
from train.loop import train

STEPS, EVERY, BATCH, ROWS, WIDTH = 60, 7, 8, 50, 8
STOPS = (9, 20, 31, 42, 53)  # 2 to 4 updates after a checkpoint
WORLDS, STAGES = (1, 2, 4), (0, 1, 2, 3)
TOLERANCE = 1e-5  # relative, of a loss; absolute, of an average: fp32 sums in another order, over 60 updates
JOBS = 12  # a group of processes serves so many jobs: DeepSpeed and gloo keep threads of each
Job = dict[str, Any]  # folder, world, stop (None: to the end), and what TrainConfig is given
Case = tuple[str, list[Job]]  # a row of the table: its name, and its jobs, one after another in one folder


class Vectors(Stream):
    """``ROWS`` vectors of ``WIDTH`` numbers."""

    def __init__(self) -> None:
        super().__init__(ROWS, 0, BATCH)
        self.x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        return {"key": [str(row) for row in rows], "x": self.x[rows]}


class Denoise:
    """Takes noise off the vectors; notes the positions that it saw. Most parameters divide unevenly among ranks."""

    def __init__(self, seen: Path) -> None:
        self.seen = seen

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, 33, bias=False), nn.SiLU(), nn.Linear(33, 33), nn.Linear(33, WIDTH + 1))

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        with open(self.seen, "a", encoding="utf-8") as file:
            file.write(json.dumps([random.step, random.indices]) + "\n")
        error = model(batch["x"] + random.normal("noise", WIDTH))[:, :WIDTH] - batch["x"]
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
    task = Denoise(folder / f"seen-{job['attempt']}-{dist.get_rank()}.jsonl")
    with contextlib.suppress(Interrupted):
        train(task, config, Vectors(), str(folder), 0, on_event=on_event)


def rank(number: int, world: int, jobs: list[Job]) -> None:
    """One rank: jobs of one world size, one after another."""
    for job in jobs:
        one(job)
        dist.barrier()


def run_all(jobs: list[Job]) -> None:
    """Runs the jobs: those of one world size in groups of processes, forked from this one, the sizes side by side."""
    waiting = {world: [job for job in jobs if job["world"] == world] for world in WORLDS}
    while any(waiting.values()):
        groups = []
        for world, left in waiting.items():
            part, waiting[world] = left[:JOBS], left[JOBS:]
            if part:
                groups.append(ranks.start(rank, world, part))
        for group in groups:
            ranks.join(group)


def losses(folder: Path) -> np.ndarray:
    """The loss of every update, float64 (STEPS,)."""
    return np.array([row["loss"] for row in read_json_lines(str(folder / "log.jsonl"))])


def same_samples(folder: Path) -> bool:
    """Whether every attempt saw, at each update that it made, the positions of that update, each once."""
    seen: dict[tuple[str, int], list[int]] = {}
    for path in folder.glob("seen-*.jsonl"):
        for step, positions in read_json_lines(str(path)):
            seen.setdefault((path.name.split("-")[1], step), []).extend(positions)
    steps = {step for _, step in seen}
    right = all(sorted(positions) == list(range(at * BATCH, (at + 1) * BATCH)) for (_, at), positions in seen.items())
    return right and steps == set(range(STEPS))


def name_of(settings: dict[str, int], world: int) -> str:
    """How a case is called."""
    return f"ZeRO {settings['zero_stage']}, {world} rank{'s'[: world > 1]}, accumulation {settings['accumulation']}"


def cases(
    stages: tuple[int, ...] = STAGES, worlds: tuple[int, ...] = WORLDS, accumulations: tuple[int, ...] = (1, 2)
) -> list[Case]:
    """The rows of the table; at another size only where there are several."""
    table: list[Case] = []
    for stage, world, accumulation in itertools.product(stages, worlds, accumulations):
        settings = {"zero_stage": stage, "accumulation": accumulation}
        name, first = name_of(settings, world), worlds.index(world)
        table.append((name, [{"world": world, "stop": None, "settings": settings}]))
        same = [{"world": world, "stop": stop, "settings": settings} for stop in (*STOPS, None)]
        table.append((f"{name}: stopped 5 times", same))
        if len(worlds) == 1:
            continue
        other = [job | {"world": worlds[(first + at) % len(worlds)]} for at, job in enumerate(same)]
        table.append((f"{name}: stopped 5 times, each time at another size", other))
        if accumulation == accumulations[0] and world == worlds[-1]:
            changed = [job | {"settings": _other(stages, accumulations, stage, at)} for at, job in enumerate(other)]
            table.append((f"{name}: stopped 5 times, each time at another size, stage and accumulation", changed))
    return table


def _other(stages: tuple[int, ...], accumulations: tuple[int, ...], stage: int, at: int) -> dict[str, int]:
    """Settings of the ``at``-th attempt of a run that began with ``stage``."""
    return {
        "zero_stage": stages[(stages.index(stage) + at) % len(stages)],
        "accumulation": accumulations[at % len(accumulations)],
    }


def measure(folder: Path, table: list[Case]) -> list[dict[str, Any]]:
    """Runs the table; a row each: the largest error of a loss (relative) and of an average, exactness, samples."""
    plain = {"zero_stage": 0, "accumulation": 1}
    reference: Job = {"world": 1, "stop": None, "settings": plain, "folder": str(folder / "reference"), "attempt": 0}
    for number, (_, jobs) in enumerate(table):
        for attempt, job in enumerate(jobs):
            job |= {"folder": str(folder / f"{number:03d}"), "attempt": attempt}
    run_all([reference] + [jobs[0] for _, jobs in table])
    for at in range(1, max(len(jobs) for _, jobs in table)):
        run_all([jobs[at] for _, jobs in table if len(jobs) > at])
    right, found = losses(folder / "reference"), []
    weights = load_file(folder / "reference/export/weights.safetensors")
    whole = {name: folder / f"{number:03d}" for number, (name, _) in enumerate(table)}
    for number, (name, jobs) in enumerate(table):
        here = folder / f"{number:03d}"
        ours, averages = losses(here), load_file(here / "export/weights.safetensors")
        row = {"case": name, "loss_error": float(np.max(np.abs(ours - right) / right))}
        row["ema_error"] = max(float((averages[key] - weights[key]).abs().max()) for key in weights)
        row["same_samples"] = same_samples(here)
        row["attempts"] = len(jobs)
        if len(jobs) > 1 and all(
            (job["world"], job["settings"]) == (jobs[0]["world"], jobs[0]["settings"]) for job in jobs
        ):
            unbroken = whole[name.partition(":")[0]]
            theirs = load_file(unbroken / "export/weights.safetensors")
            exact = np.array_equal(ours, losses(unbroken))
            row["bit_identical"] = bool(exact and all(torch.equal(averages[key], theirs[key]) for key in theirs))
        found.append(row)
    return found


def report(rows: list[dict[str, Any]], part: str) -> None:
    """Prints the table and writes the results; ``part``: what the cases made now have in their name."""
    for row in rows:
        exact = {True: "bit-identical to the whole run", False: "NOT identical", None: ""}[row.get("bit_identical")]
        same = "same samples" if row["same_samples"] else "OTHER SAMPLES"
        print(f"{row['case']:<111} loss {row['loss_error']:.1e}  ema {row['ema_error']:.1e}  {same}  {exact}".rstrip())
    print(f"{len(rows)} cases, {sum(row['attempts'] for row in rows)} runs of up to {STEPS} updates")
    exact = [row["bit_identical"] for row in rows if "bit_identical" in row]
    worst = {name: max(row[f"{name}_error"] for row in rows) / 1e-6 for name in ("loss", "ema")}
    same = float(np.mean([row["same_samples"] for row in rows]))
    limit = round(TOLERANCE / 1e-6)
    claims = [
        claim("largest relative error of any loss, any case", worst["loss"], "1e-6", limit, True),
        claim("largest error of any exported average", worst["ema"], "1e-6", limit, True),
        claim("cases with the same samples at every step", same, "share", 1),
        claim("resumed at the same size, bit-identical to the whole run", float(np.mean(exact)), "share", 1),
    ]
    note = {"note": f"cases without {part!r} in their name are of an earlier commit and date"} if part else {}
    write("equality", rows, claims, ("torch", "deepspeed"), tolerance=TOLERANCE, steps=STEPS, **note)


def main() -> None:
    """Measures and writes the results."""
    part, table = "".join(sys.argv[1:2]), cases()
    ranks.warm_up()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), [case for case in table if part in case[0]])
    found = {row["case"]: row for row in (rows_of("equality") if part else []) + rows}
    report([found[name] for name, _ in table if name in found], part)


if __name__ == "__main__":
    main()
