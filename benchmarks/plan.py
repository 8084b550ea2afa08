"""``imagen-ray plan`` against measurements on small configs: FLOPs of an update, memory of a rank, stored bytes.

    python -m benchmarks.plan [RUN]

RUN is a finished run of configs/demo.yaml; by default its data are made.

- FLOPs: for each cascade stage a real loss and its backward pass on a real batch of the run, counted by FlopCounterMode
  with attention as plain matrix products, against three forward passes counted without data.
- Memory: for a rank of a real training process (gloo), the bytes of parameters, gradients and optimizer between two
  micro-batches, counted as in `benchmarks/zero_memory.py`, plus the peak of further allocations in the next forward and
  backward pass (torch's profiler, every allocation); against the plan's states, buckets and activations. Only tensors
  are compared, not the interpreter or libraries.
- Storage: download, pack and embeddings of a run, against a plan with ``--measured`` from a trial with a quarter of the
  rows, so that the number of kept rows is predicted too.
- The simulation of failures: the mean of 20 seeds against closed forms.
"""

from __future__ import annotations

import gc
import math
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.data_run import make_data_run
from benchmarks.result import make_claim, write_result
from benchmarks.zero_memory import list_live_tensors, map_storages
from dataprep.io import storage
from pipeline.config import RunConfig
from pipeline.config_loading import load_config
from pipeline.planner.catalog import load_table
from pipeline.planner.memory import estimate_memory
from pipeline.planner.plan import CostPlan, PlanRequest, make_plan
from pipeline.planner.simulate import FailureRates, Training, WorkQueue, simulate_queue, simulate_training
from pipeline.planner.training import StageModel
from pipeline.store.run import Run
from train.config import TrainConfig
from train.engine import Engine
from train.loader.feed import to_device
from train.loader.loader import Loader
from train.loader.sampler import SampleRandom
from train.tasks.diffusion import DiffusionTask
from train.tasks.diffusion_config import DiffusionTrainingConfig

CONFIGS = Path(__file__).parent.parent / "configs"
WORLD = 2


@dataclass(frozen=True)
class Case:
    """A config, and the numbers of rows of the run and of the trial."""

    name: str
    config: str
    rows: int
    trial: int
    overrides: tuple[str, ...] = ()


CASES = [
    Case("demo", "demo.yaml", 4000, 1000),
    Case("smoke", "smoke.yaml", 960, 240, ("select.near_duplicate_bits=6",)),
    Case(
        "jpeg and int8",
        "demo.yaml",
        1200,
        300,
        ("pack.encoding=jpeg", "pack.raw_up_to=16", "embed.codec=int8", "listing.scenes.image_size=128"),
    ),
]
# Preset, resolution, micro-batch, and the fields of the training config that affect memory.
MemoryCase = tuple[str, int, int, dict[str, Any]]
MEMORY: list[MemoryCase] = [
    ("tiny-base", 16, 64, {"zero_stage": 0}),
    ("tiny-base", 16, 64, {"zero_stage": 1}),
    ("tiny-base", 16, 64, {"zero_stage": 2}),
    ("tiny-base", 16, 64, {"zero_stage": 3}),
    ("tiny-sr64", 64, 8, {"zero_stage": 2}),
    ("tiny-sr64", 64, 8, {"zero_stage": 2, "activation_checkpointing": True}),
    ("tiny-sr64", 64, 8, {"zero_stage": 0, "optimizer": "adafactor"}),
    ("tiny-sr64", 64, 8, {"zero_stage": 2, "precision": "bf16"}),
    ("small-base", 64, 2, {"zero_stage": 1}),
    ("small-base", 64, 2, {"zero_stage": 2}),
    ("small-base", 64, 2, {"zero_stage": 2, "activation_checkpointing": True}),
    ("small-base", 64, 2, {"zero_stage": 3}),
]
TOKENS, TEXT = 16, 128


def make_run(case: Case, rows: int, folder: Path) -> str:
    """Runs the data stages of a case with ``rows`` rows; returns the run folder."""
    run = str(folder / f"{case.name.replace(' ', '-')}-{rows}")
    overrides = [f"run={run}", f"listing.scenes.count={rows}", *case.overrides, "clip.min_similarity=null"]
    return make_data_run(load_config(str(CONFIGS / case.config), overrides))


def plan_case(case: Case, trial: str) -> CostPlan:
    """Returns the plan of the whole run, with rates measured on the trial."""
    config = load_config(str(CONFIGS / case.config), [f"listing.scenes.count={case.rows}", *case.overrides])
    table = load_table()
    few = table.model_copy(update={"machines": {"1xH100": table.machines["1xH100"]}})
    return make_plan(config, few, PlanRequest(measured=trial))


def count_stored_bytes(run: str, stage: str) -> int:
    """Returns the bytes of a finished stage's outputs."""
    return sum(output.bytes for output in Run(run).artifacts()[stage].manifest.outputs)


def compare_storage(case: Case, plan: CostPlan, run: str) -> list[dict[str, Any]]:
    """Returns rows with the planned and the real size of each artifact."""
    found = []
    for stage in ("download", "pack", "embed"):
        expected = sum(v.bytes for v in plan.volumes if v.chosen and v.name.startswith(f"{stage}:"))
        real = count_stored_bytes(run, stage)
        found.append(make_row("storage", f"{case.name}, {case.rows} rows", stage, expected, real))
    expected, real = (sum(item[key] for item in found) for key in ("planned", "measured"))
    found.append(
        make_row("storage in total", f"{case.name}, {case.rows} rows", "download, pack, embed", expected, real)
    )
    return found


def compare_flops(case: Case, config: RunConfig, run: str) -> list[dict[str, Any]]:
    """Returns rows with the planned and the real FLOPs of an update (loss and backward) of every cascade stage."""
    artifacts = Run(run).artifacts()
    pack, embed = artifacts["pack"].files(), artifacts["embed"].files()
    found = []
    for name, stage in config.cascade().items():
        loader = Loader(pack, embed, stage.pixel_columns(), "train", 0, stage.batch_size, stage.crop, stage.data)
        batch = to_device(loader.batch(0), torch.device("cpu"))
        text_dim, tokens = batch["text_BLD"].shape[2], batch["text_BLD"].shape[1]
        task = DiffusionTask(stage, text_dim)
        net = task.build()
        random = SampleRandom(0, 0, batch["index"].tolist())
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            loss, _ = task.loss(net, batch, random)
            loss.backward()
        model = StageModel(name, stage, text_dim, tokens)
        found.append(make_row("flops", case.name, f"train.{name}", model.update_flops, counter.get_total_flops()))
    return found


def compare_memory(cases: Sequence[MemoryCase], out: str) -> list[dict[str, Any]]:
    """Returns rows with the planned memory and what the ranks measured."""
    found = []
    for index, (preset, size, micro, options) in enumerate(cases):
        measured = storage.read_json(f"{out}/{index}.json")
        stage = make_stage_config(preset, size, micro, options)
        model = StageModel("x", stage, TEXT, TOKENS)
        setting = model.own_setting()
        memory = estimate_memory(model.parameters, setting, WORLD, model.activations(setting), micro)
        label = f"{preset}, {micro} of {size} px per rank, {setting}, {setting.precision}"
        for part in ("weights", "gradients", "activations"):
            found.append(make_row(f"memory: {part}", label, "per rank", getattr(memory, part), measured[part]))
        state = memory.optimizer + memory.ema
        found.append(make_row("memory: optimizer and EMA", label, "per rank", state, measured["optimizer"]))
        found.append(make_row("memory in total", label, "per rank", memory.device, measured["all"]))
    return found


def make_stage_config(preset: str, size: int, micro: int, options: dict[str, Any]) -> DiffusionTrainingConfig:
    """Returns a cascade stage's config with two micro-batches per update on each of `WORLD` ranks."""
    lowres: dict[str, Any] = {"low_resolution": size // 4, "diffusion": {"prediction": "x0", "lowres_max_level": 0.3}}
    given = {"resolution": size, "model": preset, "batch_size": 2 * micro * WORLD, "accumulation": 2}
    return DiffusionTrainingConfig.model_validate(given | (lowres if "sr" in preset else {}) | options)


def make_batch(stage: DiffusionTrainingConfig, micro: int) -> dict[str, Any]:
    """Returns a batch of zeros with `TOKENS` tokens per caption."""
    sizes = [stage.resolution, *([stage.low_resolution] if stage.low_resolution else [])]
    batch: dict[str, Any] = {f"pixels_{size}": torch.zeros(micro, size, size, 3, dtype=torch.uint8) for size in sizes}
    batch |= {"text_BLD": torch.zeros(micro, TOKENS, TEXT), "text_mask_BL": torch.ones(micro, TOKENS, dtype=torch.bool)}
    return batch | {"index": torch.arange(micro)}


def measure_memory(preset: str, size: int, micro: int, options: dict[str, Any]) -> dict[str, float]:
    """Returns bytes on this rank: what is live between micro-batches, and the peak beyond that in the next one."""
    before = set(map_storages(list_live_tensors()))
    torch.manual_seed(0)
    stage = make_stage_config(preset, size, micro, options)
    task, batch = DiffusionTask(stage, TEXT), make_batch(stage, micro)
    train = TrainConfig(**{name: getattr(stage, name) for name in TrainConfig.model_fields if name != "preset"})
    engine = Engine(task.build(), train)

    def run_micro_batch() -> None:
        loss, _ = task.loss(engine, batch, SampleRandom(0, 0, batch["index"].tolist()))
        engine.backward(loss)

    for _ in range(3):  # an update and half of the next
        run_micro_batch()
        engine.step(1e-4)
    sizes = {name: sum(part.values()) for name, part in group_storages(engine, batch, before).items()}
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run_micro_batch()
    grown = measure_peak_growth(profiler)
    states = sum(sizes.values())
    return sizes | {"activations": grown, "all": states + grown}


def group_storages(engine: Engine, batch: dict[str, Any], before: set[int]) -> dict[str, dict[int, int]]:
    """Returns the storages of weights, optimizer, and all others, which between two micro-batches are gradients."""
    params = list(engine.module.parameters())
    own = map_storages([part for param in params for part in (param.data, getattr(param, "ds_tensor", None))])
    state = [value for slots in engine.optimizer.state.values() for value in slots.values()]
    held = map_storages([*state, *(engine.masters if engine.config.zero_stage else [])])
    grads = [param.grad for param in params if param.grad is not None]
    inputs = map_storages([value for value in batch.values() if isinstance(value, Tensor | nn.Parameter)])
    everything = map_storages([*list_live_tensors(), *grads])
    known = {*before, *own, *held, *inputs}
    other = {address: size for address, size in everything.items() if address not in known}
    return {"weights": own, "optimizer": held, "gradients": other}


def measure_peak_growth(profiler: profile) -> float:
    """Returns the peak of allocated minus freed bytes since the profile began."""
    live = peak = 0
    kineto: Any = profiler.profiler.kineto_results if profiler.profiler else None
    events = [event for event in kineto.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return float(peak)


def run_rank(index: int, cases: Sequence[MemoryCase], port: int, out: str) -> None:
    """Runs all cases on one rank; rank 0 writes the measurements to ``out``."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(index)}
    dist.init_process_group("gloo", rank=index, world_size=WORLD)
    for number, case in enumerate(cases):
        measured = measure_memory(*case)
        if index == 0:
            storage.write_json(f"{out}/{number}.json", measured)
        dist.barrier()


def compare_simulation() -> tuple[list[dict[str, Any]], float]:
    """Returns rows with the simulated means and closed forms, and the CPU-seconds of one simulation of both.

    10^10 URLs in shards of 1,000, 5 minutes each on one of 16 slots of 10,000 machines, against a machine's renewal
    rate; 30 days of training on 1,250 machines (10,000 GPUs) against Daly's expectation. Interruptible machines.
    """
    queue, faults = WorkQueue(10_000_000, 300.0, 10_000, 16), FailureRates(0.01 / 3600, 1800.0, 300.0)
    training, rare = Training(30 * 86400.0, 1250, 1800.0, 30.0), FailureRates(1.6e-4 / 3600, 1800.0, 300.0)
    seeds = range(20)
    began = time.process_time()
    queue_ends = [simulate_queue(queue, faults, np.random.default_rng(seed)).end for seed in seeds]
    training_ends = [simulate_training(training, rare, np.random.default_rng(seed)).end for seed in seeds]
    each = (time.process_time() - began) / len(seeds)
    whole = math.exp(-faults.rate * queue.seconds)
    rate = whole / (1 - whole) / (1 / faults.rate + faults.repair)
    renewal = queue.shards / (queue.nodes * queue.slots) / rate
    daly = expect_training(training, rare)
    case = "10,000 machines, 10^10 URLs"
    return [
        make_row("simulation", case, "data stage", float(np.mean(queue_ends)), renewal),
        make_row("simulation", "1,250 machines of 8 GPUs", "training", float(np.mean(training_ends)), daly),
    ], each


def expect_training(training: Training, faults: FailureRates) -> float:
    """Returns the expected seconds of a training (Daly 2006, equation 20, plus the wait for a machine).

    With mean time between failures of the group M, interval t, save s, restart r and repair p, an interval takes
    (M + p) e^(r / M) (e^((t + s) / M) - 1).
    """
    rate = faults.rate * training.nodes
    if rate == 0:
        return training.seconds + training.save * math.ceil(training.seconds / training.interval)
    each = (1 / rate + faults.repair) * math.exp(rate * faults.restart)
    return training.seconds / training.interval * each * math.expm1(rate * (training.interval + training.save))


def make_row(kind: str, case: str, what: str, expected: float, real: float) -> dict[str, Any]:
    """Returns and prints a comparison; ``error`` is relative to the measured value."""
    error = expected / real - 1 if real else 0.0
    print(f"{kind:<30} {case:<64} {what:<22} planned {expected:>16,.0f}  measured {real:>16,.0f}  {error:+.2%}")
    return {"kind": kind, "case": case, "what": what, "planned": expected, "measured": real, "error": error}


def measure_memory_cases(cases: Sequence[MemoryCase]) -> list[dict[str, Any]]:
    """Measures the memory of `WORLD` real ranks in each of ``cases``; returns the rows."""
    with tempfile.TemporaryDirectory() as out, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        mp.spawn(run_rank, (cases, port, out), nprocs=WORLD)
        return compare_memory(cases, out)


def measure_run(case: Case, run: str | None) -> list[dict[str, Any]]:
    """Returns the rows of a case's storage and FLOPs; ``run``: a finished run to compare the plan with."""
    with tempfile.TemporaryDirectory() as out:
        trial = make_run(case, case.trial, Path(out))
        whole = run or make_run(case, case.rows, Path(out))
        plan = plan_case(case, trial)
        return compare_storage(case, plan, whole) + compare_flops(case, plan.config, whole)


def write_claims(rows: list[dict[str, Any]], each: float) -> None:
    """Writes the result; ``each``: CPU-seconds of a simulation."""

    def worst(kind: str) -> float:
        return max(abs(item["error"]) for item in rows if item["kind"] == kind)

    claims = [
        make_claim("largest deviation of a rank's memory", worst("memory in total"), "share", 0.15, True),
        make_claim("largest deviation of a run's stored bytes", worst("storage in total"), "share", 0.05, True),
        make_claim("largest deviation of an artifact's bytes", worst("storage"), "share", 0.05, True),
        make_claim("largest deviation of an update's FLOPs", worst("flops"), "share", 0.03, True),
        make_claim(
            "largest deviation of the simulation's mean from the closed form", worst("simulation"), "share", 0.03, True
        ),
        make_claim("simulation of 10,000 machines and 10^10 URLs", each, "CPU-seconds", 5.0, True),
    ]
    write_result("plan", rows, claims, ("torch", "deepspeed", "pyarrow"))


def main() -> None:
    """Measures and writes the result."""
    run = sys.argv[1] if sys.argv[1:] else None
    rows = measure_memory_cases(MEMORY)
    for case in CASES:
        rows += measure_run(case, run if case.name == "demo" else None)
    simulated, each = compare_simulation()
    write_claims(rows + simulated, each)


if __name__ == "__main__":
    main()
