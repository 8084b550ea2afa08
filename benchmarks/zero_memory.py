"""Memory of parameters, gradients and optimizer state per rank, ZeRO 0 to 3, against the theory.

    python -m benchmarks.zero_memory

Counts the bytes of the storages that are live between two micro-batches of an update: those of the parameters, those of
the optimizer (fp32 masters, two moments, EMA), and all others, which at that point are the gradients. The theory, with
P parameters, N ranks, and p bytes per parameter and per gradient:

    ZeRO    parameters  gradients  optimizer
    0       p P         p P        12 P              (fp32: parameters are their own masters)
    1       p P         p P        16 P / N
    2       p P         p P / N    16 P / N
    3       p P / N     p P / N    16 P / N

ZeRO 2 sums the gradients of micro-batches, of which there are two here, in fp32: p is 4 for them.
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks import ranks
from benchmarks.result import make_claim, write_result
from train.config import TrainConfig
from train.engine import Engine

ZeroStage = Literal[0, 1, 2, 3]
Precision = Literal["fp32", "bf16"]
WIDTH, LAYERS, WORLDS = 768, 8, (2, 4)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
STAGES: tuple[ZeroStage, ...] = (0, 1, 2, 3)
CASES = [(stage, precision) for precision in PRECISIONS for stage in STAGES if stage or precision == "fp32"]


def map_storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Returns address -> bytes of the storages of the tensors among ``tensors``."""
    found = {}
    for tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def list_live_tensors() -> list[Tensor]:
    """Returns every tensor that the garbage collector tracks."""
    gc.collect()
    # Not isinstance(), which would make lazily imported objects import their modules.
    return [item for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter)]


def measure_case(stage: ZeroStage, precision: Precision) -> dict[str, float]:
    """Returns the MiB of parameters, gradients and optimizer state on this rank."""
    before = set(map_storages(list_live_tensors()))
    torch.manual_seed(0)
    config = TrainConfig(batch_size=8 * dist.get_world_size(), accumulation=2, zero_stage=stage, precision=precision)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    engine = Engine(model, config)
    x = torch.randn(4, WIDTH)
    for micro in range(3):  # an update and half of the next
        engine.backward(engine(x).square().mean())
        if micro < 2:
            engine.step(1e-3)
    parameters = [part for param in model.parameters() for part in (param.data, getattr(param, "ds_tensor", None))]
    state = [value for slots in engine.optimizer.state.values() for value in slots.values()]
    own = map_storages(parameters)
    held = map_storages([*state, *(engine.masters if stage else [])])
    grads = [param.grad for param in model.parameters() if param.grad is not None]
    everything = map_storages([*list_live_tensors(), *grads, x])
    known = {*before, *own, *held, x.untyped_storage().data_ptr()}
    other = {address: size for address, size in everything.items() if address not in known}
    sizes = {"parameters": own, "optimizer": held, "gradients": other}
    return {name: sum(part.values()) / 2**20 for name, part in sizes.items()}


def compute_theory(stage: int, precision: str, world: int) -> dict[str, float]:
    """Returns the expected MiB of each."""
    count = LAYERS * (WIDTH * WIDTH + WIDTH) / 2**20
    size = 2 if precision == "bf16" else 4
    return {
        "parameters": size * count / (world if stage == 3 else 1),
        "gradients": (4 if stage == 2 else size) * count / (world if stage >= 2 else 1),
        "optimizer": 16 * count / world if stage else 12 * count,
    }


def run_rank(number: int, world: int, out: str) -> None:
    """Runs this rank's part of all cases; rank 0 writes the measurements to ``out``."""
    rows = []
    for stage, precision in CASES:
        rows.append({"zero": stage, "precision": precision, "ranks": world, "mb": measure_case(stage, precision)})
        dist.barrier()
    if number == 0:
        (Path(out) / f"{world}.json").write_text(json.dumps(rows))


def report_cases(rows: list[dict[str, Any]]) -> None:
    """Prints the table and writes the result."""
    for row in rows:
        row["theory_mb"] = compute_theory(row["zero"], row["precision"], row["ranks"])
        row["error"] = {name: row["mb"][name] / row["theory_mb"][name] - 1 for name in row["theory_mb"]}
        parts = "  ".join(f"{n} {row['mb'][n]:6.1f} MB ({row['error'][n]:+.1%})" for n in row["theory_mb"])
        print(f"ZeRO {row['zero']} {row['precision']} {row['ranks']} ranks: {parts}")
    claims = [
        make_claim(
            f"largest deviation of {name} from the theory",
            max(abs(r["error"][name]) for r in rows),
            "share",
            0.15,
            True,
        )
        for name in ("parameters", "gradients", "optimizer")
    ]
    write_result("zero_memory", rows, claims, ("torch", "deepspeed"))


def main() -> None:
    """Measures and writes the result."""
    ranks.warm_up()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as out:
        for world in WORLDS:
            ranks.join(ranks.start(run_rank, world, out))
            rows += json.loads((Path(out) / f"{world}.json").read_text())
    report_cases(rows)


if __name__ == "__main__":
    main()
