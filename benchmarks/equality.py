"""Equality of runs across ZeRO stages, world sizes, accumulation and interruptions.

    python -m benchmarks.equality [PART]

With PART, such as ``"ZeRO 3, 4 ranks"``, only the cases whose name contains it; the rows of the others are kept.

A small denoiser is trained for 60 updates in every combination of ZeRO stage, ranks (gloo, CPU) and accumulation:
uninterrupted; interrupted at five points and resumed unchanged; interrupted at the same points and resumed at another
world size each time; and with everything changed at each resume. An interruption saves nothing. Every run is compared
with an uninterrupted run of one process without ZeRO: the loss and the sample positions of every update, and the
exported EMA. A run that was resumed unchanged is also compared bit by bit with the uninterrupted run of its kind. So,
at one and two ranks, are the tasks that train more than a network by its own loss: an autoencoder with a codebook and a
discriminator, a refinement stage, a diffusion stage with a discriminator, a prior.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from benchmarks import ranks
from benchmarks.equality_tasks import BATCH, TASKS, record
from benchmarks.result import make_claim, read_rows, write_result
from dataprep.io.storage import read_json_lines
from train.config import TrainConfig
from train.loop import train

STEPS, EVERY = 60, 7
STOPS = (9, 20, 31, 42, 53)  # 2 to 4 updates after a checkpoint
WORLDS, STAGES = (1, 2, 4), (0, 1, 2, 3)
TOLERANCE = 1e-5  # relative, of a loss; absolute, of the EMA: fp32 sums in another order, over 60 updates
JOBS = 12  # per group of processes: DeepSpeed and gloo keep threads of each job
Job = dict[str, Any]  # folder, world, stop (None: run to the end), settings of TrainConfig
Case = tuple[str, list[Job]]  # name, and the jobs that run one after another in one folder


class Interrupted(Exception):  # noqa: N818
    """Simulates a kill: nothing is saved."""


def run_job(job: Job) -> None:
    """Runs this rank's part of a job."""

    def on_event(event: dict[str, Any]) -> None:
        if event["kind"] == "log" and event["row"]["step"] == job["stop"]:
            raise Interrupted

    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"steps": STEPS, "batch_size": BATCH, "checkpoint_every": EVERY, "log_every": 1, "warmup_steps": 5}
    config = TrainConfig.model_validate(settings | job["settings"])
    task, data = TASKS[job["task"]](folder / f"inputs-{dist.get_rank()}", config.accumulation)
    task = record(task, folder / f"seen-{job['attempt']}-{dist.get_rank()}.jsonl")
    with contextlib.suppress(Interrupted):
        train(task, config, data, str(folder), 0, on_event=on_event)


def run_rank(number: int, world: int, jobs: list[Job]) -> None:
    """Runs this rank's part of jobs of one world size, one after another."""
    for job in jobs:
        run_job(job)
        dist.barrier()


def run_all(jobs: list[Job]) -> None:
    """Runs the jobs in groups of forked processes, a group per world size at a time."""
    waiting = {world: [job for job in jobs if job["world"] == world] for world in WORLDS}
    while any(waiting.values()):
        groups = []
        for world, left in waiting.items():
            part, waiting[world] = left[:JOBS], left[JOBS:]
            if part:
                groups.append(ranks.start(run_rank, world, part))
        for group in groups:
            ranks.join(group)


def read_losses(folder: Path) -> np.ndarray:
    """Returns the loss of every update, float64 (STEPS,)."""
    return np.array([row["loss"] for row in read_json_lines(str(folder / "log.jsonl"))])


def has_same_samples(folder: Path) -> bool:
    """Returns whether every attempt saw, at each of its updates, the positions of that update exactly once."""
    seen: dict[tuple[str, int], list[int]] = {}
    for path in folder.glob("seen-*.jsonl"):
        for step, positions in read_json_lines(str(path)):
            seen.setdefault((path.name.split("-")[1], step), []).extend(positions)
    steps = {step for _, step in seen}
    right = all(sorted(positions) == list(range(at * BATCH, (at + 1) * BATCH)) for (_, at), positions in seen.items())
    return right and steps == set(range(STEPS))


def name_case(settings: dict[str, int], world: int, task: str) -> str:
    """Returns the name of a case."""
    name = f"ZeRO {settings['zero_stage']}, {world} rank{'s'[: world > 1]}, accumulation {settings['accumulation']}"
    return f"{task}, {name}" if task else name


def make_cases(
    stages: tuple[int, ...] = STAGES,
    worlds: tuple[int, ...] = WORLDS,
    accumulations: tuple[int, ...] = (1, 2),
    task: str = "",
) -> list[Case]:
    """Returns the cases; those at another world size only if there are several ``worlds``."""
    table: list[Case] = []
    for stage, world, accumulation in itertools.product(stages, worlds, accumulations):
        settings = {"zero_stage": stage, "accumulation": accumulation}
        name, first = name_case(settings, world, task), worlds.index(world)
        table.append((name, [{"task": task, "world": world, "stop": None, "settings": settings}]))
        same = [{"task": task, "world": world, "stop": stop, "settings": settings} for stop in (*STOPS, None)]
        table.append((f"{name}: stopped 5 times", same))
        if len(worlds) == 1:
            continue
        other = [job | {"world": worlds[(first + at) % len(worlds)]} for at, job in enumerate(same)]
        table.append((f"{name}: stopped 5 times, each time at another size", other))
        if accumulation == accumulations[0] and world == worlds[-1]:
            changed = [
                job | {"settings": _change_settings(stages, accumulations, stage, at)} for at, job in enumerate(other)
            ]
            table.append((f"{name}: stopped 5 times, each time at another size, stage and accumulation", changed))
    return table


def _change_settings(stages: tuple[int, ...], accumulations: tuple[int, ...], stage: int, at: int) -> dict[str, int]:
    """Returns the settings of attempt ``at`` of a run that began with ``stage``."""
    return {
        "zero_stage": stages[(stages.index(stage) + at) % len(stages)],
        "accumulation": accumulations[at % len(accumulations)],
    }


def measure_cases(folder: Path, table: list[Case]) -> list[dict[str, Any]]:
    """Runs the cases; returns a row per case: largest error of a loss (relative) and of the EMA, exactness, samples."""
    plain = {"zero_stage": 0, "accumulation": 1}
    references: dict[str, Job] = {}
    for number, task in enumerate(dict.fromkeys(jobs[0]["task"] for _, jobs in table)):
        place = str(folder / f"reference-{number}")
        references[task] = {"task": task, "world": 1, "stop": None, "settings": plain, "folder": place, "attempt": 0}
    for number, (_, jobs) in enumerate(table):
        for attempt, job in enumerate(jobs):
            job |= {"folder": str(folder / f"{number:03d}"), "attempt": attempt}
    run_all([*references.values()] + [jobs[0] for _, jobs in table])
    for at in range(1, max(len(jobs) for _, jobs in table)):
        run_all([jobs[at] for _, jobs in table if len(jobs) > at])
    found = []
    whole = {name: folder / f"{number:03d}" for number, (name, _) in enumerate(table)}
    for number, (name, jobs) in enumerate(table):
        here, reference = folder / f"{number:03d}", Path(references[jobs[0]["task"]]["folder"])
        right, weights = read_losses(reference), load_file(reference / "export/weights.safetensors")
        ours, ema = read_losses(here), load_file(here / "export/weights.safetensors")
        row = {"case": name, "loss_error": float(np.max(np.abs(ours - right) / right))}
        row["ema_error"] = max(float((ema[key] - weights[key]).abs().max()) for key in weights)
        row["same_samples"] = has_same_samples(here)
        row["attempts"] = len(jobs)
        if len(jobs) > 1 and all(
            (job["world"], job["settings"]) == (jobs[0]["world"], jobs[0]["settings"]) for job in jobs
        ):
            unbroken = whole[name.partition(": stopped")[0]]
            theirs = load_file(unbroken / "export/weights.safetensors")
            exact = np.array_equal(ours, read_losses(unbroken))
            row["bit_identical"] = bool(exact and all(torch.equal(ema[key], theirs[key]) for key in theirs))
        found.append(row)
    return found


def report_cases(rows: list[dict[str, Any]], part: str) -> None:
    """Prints the table and writes the result; ``part`` is in the name of every case that ran now."""
    for row in rows:
        identity = {True: "bit-identical to the whole run", False: "NOT identical", None: ""}[row.get("bit_identical")]
        samples = "same samples" if row["same_samples"] else "OTHER SAMPLES"
        errors = f"loss {row['loss_error']:.1e}  ema {row['ema_error']:.1e}"
        print(f"{row['case']:<111} {errors}  {samples}  {identity}".rstrip())
    print(f"{len(rows)} cases, {sum(row['attempts'] for row in rows)} runs of up to {STEPS} updates")
    exact = [row["bit_identical"] for row in rows if "bit_identical" in row]
    worst = {name: max(row[f"{name}_error"] for row in rows) / 1e-6 for name in ("loss", "ema")}
    same = float(np.mean([row["same_samples"] for row in rows]))
    limit = round(TOLERANCE / 1e-6)
    claims = [
        make_claim("largest relative error of any loss, any case", worst["loss"], "1e-6", limit, True),
        make_claim("largest error of any exported EMA", worst["ema"], "1e-6", limit, True),
        make_claim("cases with the same samples at every step", same, "share", 1),
        make_claim("resumed at the same world size, bit-identical to the whole run", float(np.mean(exact)), "share", 1),
    ]
    note = {"note": f"cases without {part!r} in their name are from an earlier commit and date"} if part else {}
    write_result("equality", rows, claims, ("torch", "deepspeed"), tolerance=TOLERANCE, steps=STEPS, **note)


def main() -> None:
    """Measures and writes the result."""
    part, table = "".join(sys.argv[1:2]), make_cases()
    table += [case for task in TASKS if task for case in make_cases(worlds=(1, 2), accumulations=(1,), task=task)]
    ranks.warm_up()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_cases(Path(folder), [case for case in table if part in case[0]])
    found = {row["case"]: row for row in (read_rows("equality") if part else []) + rows}
    report_cases([found[name] for name, _ in table if name in found], part)


if __name__ == "__main__":
    main()
