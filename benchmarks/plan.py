"""``imagen-ray plan`` against reality, on small configs: operations of a step, memory of a rank, stored bytes.

``python -m benchmarks.plan [RUN]``; RUN is a finished run of configs/demo.yaml, else its data are made.

- Operations: of each cascade stage a real loss and its backward pass on a real batch of the run, counted by
  FlopCounterMode with attention as plain products, against three forward passes counted without data.
- Memory: of each rank of a real training process (gloo), the bytes of parameters, gradients and optimizer between two
  micro batches as `benchmarks/zero_memory.py` counts them, plus the most that the allocator gave out beyond them in the
  forward and backward pass that follows (torch's profiler, every allocation); against the plan's states, buckets and
  activations. Nothing of a process is compared that is not its tensors: no interpreter, no libraries.
- Storage: download, pack and embeddings of a run, against a plan with ``--measured`` from a trial with a quarter of
  the rows: so the number of rows that will be kept is foretold too.
- The simulation of failures, in the mean of 20 seeds, against closed forms.
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
from benchmarks.result import claim, write
from benchmarks.zero_memory import live_tensors, storages
from dataprep import storage
from pipeline.config import CascadeStageConfig, RunConfig, load_config
from pipeline.planner.memory import Setting, rank_memory
from pipeline.planner.plan import Plan, Wanted, make_plan
from pipeline.planner.simulate import Bag, Faults, Training, expected_training, run_bag, run_training
from pipeline.planner.table import load_table
from pipeline.planner.training import StageModel
from pipeline.store import Run
from train.config import TrainConfig
from train.data import Loader, SampleRandom, to_device
from train.engine import Engine
from train.tasks.diffusion import DiffusionTask, stage_columns

CONFIGS = Path(__file__).parent.parent / "configs"
WORLD = 2


@dataclass(frozen=True)
class Case:
    """A config, and its rows in the run and in the trial."""

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
# Preset, size, micro batch, and what of a training config decides its memory.
MEMORY: list[tuple[str, int, int, dict[str, Any]]] = [
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
    """The data stages of a case with so many rows."""
    run = str(folder / f"{case.name.replace(' ', '-')}-{rows}")
    overrides = [f"run={run}", f"listing.scenes.count={rows}", *case.overrides, "clip.min_similarity=null"]
    return make_data_run(load_config(str(CONFIGS / case.config), overrides))


def planned(case: Case, trial: str) -> Plan:
    """The plan of the whole run, measured on the trial."""
    config = load_config(str(CONFIGS / case.config), [f"listing.scenes.count={case.rows}", *case.overrides])
    table = load_table()
    few = table.model_copy(update={"machines": {"1xH100": table.machines["1xH100"]}})
    return make_plan(config, few, Wanted(measured=trial))


def stored_bytes(run: str, stage: str) -> int:
    """Bytes of a finished stage's shards."""
    return sum(output.bytes for output in Run(run).artifacts()[stage].manifest.outputs)


def storage_rows(case: Case, plan: Plan, run: str) -> list[dict[str, Any]]:
    """What was foretold of each artifact, and what it takes."""
    found = []
    for stage in ("download", "pack", "embed"):
        foretold = sum(v.bytes for v in plan.volumes if v.chosen and v.name.startswith(f"{stage}:"))
        real = stored_bytes(run, stage)
        found.append(row("storage", f"{case.name}, {case.rows} rows", stage, foretold, real))
    foretold, real = (sum(item[key] for item in found) for key in ("planned", "measured"))
    return [*found, row("storage in all", f"{case.name}, {case.rows} rows", "download, pack, embed", foretold, real)]


def flops_rows(case: Case, config: RunConfig, run: str) -> list[dict[str, Any]]:
    """Operations of a real update's share of one rank, a loss and its backward, of every cascade stage."""
    artifacts = Run(run).artifacts()
    pack, embed = artifacts["pack"].files(), artifacts["embed"].files()
    found = []
    for name, stage in config.train.items():
        loader = Loader(pack, embed, stage_columns(stage), "train", 0, stage.batch_size, stage.crop, stage.data)
        batch = to_device(loader.batch(0), torch.device("cpu"))
        text_dim, tokens = batch["text_BLD"].shape[2], batch["text_BLD"].shape[1]
        task = DiffusionTask(stage, text_dim)
        net = task.build()
        random = SampleRandom(0, 0, batch["index"].tolist())
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            loss, _ = task.loss(net, batch, random)
            loss.backward()
        model = StageModel(name, stage, text_dim, tokens)
        found.append(row("operations", case.name, f"train.{name}", model.update_flops, counter.get_total_flops()))
    return found


def memory_rows(cases: Sequence[tuple[str, int, int, dict[str, Any]]], out: str) -> list[dict[str, Any]]:
    """The plan's figures beside what the ranks wrote."""
    found = []
    for index, (preset, size, micro, options) in enumerate(cases):
        measured = storage.read_json(f"{out}/{index}.json")
        stage = stage_config(preset, size, micro, options)
        model = StageModel("x", stage, TEXT, TOKENS)
        setting = model.own_setting()
        memory = rank_memory(model.parameters, setting, WORLD, model.activations(setting), micro)
        label = f"{preset}, {micro} of {size} px a rank, {told(setting)}"
        for part in ("weights", "gradients", "activations"):
            found.append(row(f"memory: {part}", label, "a rank", getattr(memory, part), measured[part]))
        state = memory.optimizer + memory.average
        found.append(row("memory: optimizer and average", label, "a rank", state, measured["optimizer"]))
        found.append(row("memory in all", label, "a rank", memory.device, measured["all"]))
    return found


def told(setting: Setting) -> str:
    """A setting in words."""
    return f"{setting}, {setting.precision}"


def stage_config(preset: str, size: int, micro: int, options: dict[str, Any]) -> CascadeStageConfig:
    """A cascade stage's config with two micro batches an update on each of two ranks."""
    lowres: dict[str, Any] = {"low_resolution": size // 4, "diffusion": {"prediction": "x0"}}
    given = {"resolution": size, "model": preset, "batch_size": 2 * micro * WORLD, "accumulation": 2}
    return CascadeStageConfig.model_validate(given | (lowres if "sr" in preset else {}) | options)


def fake_batch(stage: CascadeStageConfig, micro: int) -> dict[str, Any]:
    """A batch with nothing in it."""
    sizes = [stage.resolution, *([stage.low_resolution] if stage.low_resolution else [])]
    batch: dict[str, Any] = {f"pixels_{size}": torch.zeros(micro, size, size, 3, dtype=torch.uint8) for size in sizes}
    batch |= {"text_BLD": torch.zeros(micro, TOKENS, TEXT), "text_mask_BL": torch.ones(micro, TOKENS, dtype=torch.bool)}
    return batch | {"index": torch.arange(micro)}


def measure(preset: str, size: int, micro: int, options: dict[str, Any]) -> dict[str, float]:
    """Bytes on this rank: what lives between micro batches, and the most beyond it in the next."""
    before = set(storages(live_tensors()))
    torch.manual_seed(0)
    stage = stage_config(preset, size, micro, options)
    task, batch = DiffusionTask(stage, TEXT), fake_batch(stage, micro)
    train = TrainConfig(**{name: getattr(stage, name) for name in TrainConfig.model_fields if name != "preset"})
    engine = Engine(task.build(), train)

    def half() -> None:
        loss, _ = task.loss(engine, batch, SampleRandom(0, 0, batch["index"].tolist()))
        engine.backward(loss)

    for _ in range(3):  # an update, and the first half of another
        half()
        engine.step(1e-4)
    sizes = {name: sum(part.values()) for name, part in standing(engine, batch, before).items()}
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        half()
    grown = peak_grown(profiler)
    states = sum(sizes.values())
    return sizes | {"activations": grown, "all": states + grown}


def standing(engine: Engine, batch: dict[str, Any], before: set[int]) -> dict[str, dict[int, int]]:
    """Storages of weights, optimizer and all others, which between two micro batches are gradients."""
    params = list(engine.module.parameters())
    own = storages([part for param in params for part in (param.data, getattr(param, "ds_tensor", None))])
    state = [value for slots in engine.optimizer.state.values() for value in slots.values()]
    held = storages([*state, *(engine.masters if engine.config.zero_stage else [])])
    grads = [param.grad for param in params if param.grad is not None]
    inputs = storages([value for value in batch.values() if isinstance(value, Tensor | nn.Parameter)])
    everything = storages([*live_tensors(), *grads])
    known = {*before, *own, *held, *inputs}
    other = {address: size for address, size in everything.items() if address not in known}
    return {"weights": own, "optimizer": held, "gradients": other}


def peak_grown(profiler: profile) -> float:
    """The most bytes that the allocator had given out and not got back, beyond what stood when the profile began."""
    live = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return float(peak)


def rank(index: int, cases: Sequence[tuple[str, int, int, dict[str, Any]]], port: int, out: str) -> None:
    """One rank through all cases."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(index)}
    dist.init_process_group("gloo", rank=index, world_size=WORLD)
    for number, case in enumerate(cases):
        measured = measure(*case)
        if index == 0:
            storage.write_json(f"{out}/{number}.json", measured)
        dist.barrier()


def simulation_rows() -> tuple[list[dict[str, Any]], float]:
    """The simulation's means against closed forms, on 10,000 machines; and CPU-seconds of one simulation of them all.

    A bag of 10^10 URLs in shards of 1,000, 5 minutes each on one of 16 slots, against a machine's renewal rate; 30
    days of training on 1,250 machines (10,000 GPUs) against Daly's expectation. Interruptible machines.
    """
    bag, faults = Bag(10_000_000, 300.0, 10_000, 16), Faults(0.01 / 3600, 1800.0, 300.0)
    gang, rare = Training(30 * 86400.0, 1250, 1800.0, 30.0), Faults(1.6e-4 / 3600, 1800.0, 300.0)
    seeds = range(20)
    began = time.process_time()
    bags = [run_bag(bag, faults, np.random.default_rng(seed)).end for seed in seeds]
    gangs = [run_training(gang, rare, np.random.default_rng(seed)).end for seed in seeds]
    each = (time.process_time() - began) / len(seeds)
    whole = math.exp(-faults.rate * bag.seconds)
    rate = whole / (1 - whole) / (1 / faults.rate + faults.repair)
    renewal = bag.shards / (bag.nodes * bag.slots) / rate
    case = "10,000 machines, 10^10 URLs"
    return [
        row("simulation", case, "a data stage", float(np.mean(bags)), renewal),
        row("simulation", "1,250 machines of 8 GPUs", "training", float(np.mean(gangs)), expected_training(gang, rare)),
    ], each


def row(kind: str, case: str, what: str, foretold: float, real: float) -> dict[str, Any]:
    """One comparison."""
    error = foretold / real - 1 if real else 0.0
    print(f"{kind:<30} {case:<64} {what:<22} planned {foretold:>16,.0f}  measured {real:>16,.0f}  {error:+.2%}")
    return {"kind": kind, "case": case, "what": what, "planned": foretold, "measured": real, "error": error}


def memory(cases: Sequence[tuple[str, int, int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The memory of two real ranks in each of ``cases``."""
    with tempfile.TemporaryDirectory() as out, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        mp.spawn(rank, (cases, port, out), nprocs=WORLD)
        return memory_rows(cases, out)


def artifacts(case: Case, run: str | None) -> list[dict[str, Any]]:
    """Stored bytes and operations of a case; ``run``: a finished one to hold the plan against."""
    with tempfile.TemporaryDirectory() as out:
        trial = make_run(case, case.trial, Path(out))
        whole = run or make_run(case, case.rows, Path(out))
        plan = planned(case, trial)
        return storage_rows(case, plan, whole) + flops_rows(case, plan.config, whole)


def finish(rows: list[dict[str, Any]], each: float) -> None:
    """Writes the results; ``each``: CPU-seconds of a simulation."""

    def worst(kind: str) -> float:
        return max(abs(item["error"]) for item in rows if item["kind"] == kind)

    claims = [
        claim("largest deviation of a rank's memory", worst("memory in all"), "share", 0.15, True),
        claim("largest deviation of what a run stores", worst("storage in all"), "share", 0.05, True),
        claim("largest deviation of one artifact of it", worst("storage"), "share", 0.05, True),
        claim("largest deviation of an update's operations", worst("operations"), "share", 0.03, True),
        claim(
            "largest deviation of the simulation's mean from a closed form", worst("simulation"), "share", 0.03, True
        ),
        claim("one simulation of 10,000 machines and 10^10 URLs", each, "CPU-seconds", 5.0, True),
    ]
    write("plan", rows, claims, ("torch", "deepspeed", "pyarrow"))


def main() -> None:
    """Measures and writes the results."""
    run = sys.argv[1] if sys.argv[1:] else None
    rows = memory(MEMORY)
    for case in CASES:
        rows += artifacts(case, run if case.name == "demo" else None)
    simulated, each = simulation_rows()
    finish(rows + simulated, each)


if __name__ == "__main__":
    main()
