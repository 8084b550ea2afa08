"""Memory of parameters, gradients and optimizer state a rank, ZeRO 0 to 3, against the theory.

``python -m benchmarks.zero_memory``. Counted are the bytes of the storages that live between two micro-batches of an
update: those of the parameters, those of the optimizer (fp32 masters, two moments, the average), and all others, which
at that moment are the gradients. The theory: with P parameters, N ranks, p bytes a parameter and gradient,

    ZeRO    parameters  gradients  optimizer
    0       p P         p P        12 P              (fp32: the parameters are their own masters)
    1       p P         p P        16 P / N
    2       p P         p P / N    16 P / N
    3       p P / N     p P / N    16 P / N
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks import ranks
from benchmarks.result import claim, write
from train.config import TrainConfig
from train.engine import Engine

WIDTH, LAYERS, WORLDS = 768, 8, (2, 4)
CASES = [(stage, precision) for precision in ("fp32", "bf16") for stage in (0, 1, 2, 3) if stage or precision == "fp32"]


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Address -> bytes of the storages under tensors."""
    found = {}
    for tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def live_tensors() -> list[Tensor]:
    """Every tensor that Python knows of."""
    gc.collect()
    # type(), since isinstance() asks lazily imported objects for their class, which imports them.
    return [item for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter)]


def case(stage: int, precision: str) -> dict[str, float]:
    """Megabytes of parameters, gradients and optimizer state on this rank."""
    before = set(storages(live_tensors()))
    torch.manual_seed(0)
    config = TrainConfig(batch_size=8 * dist.get_world_size(), accumulation=2, zero_stage=stage, precision=precision)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    engine = Engine(model, config)
    x = torch.randn(4, WIDTH)
    for micro in range(3):  # an update, and the first half of another
        engine.backward(engine(x).square().mean())
        if micro < 2:
            engine.step(1e-3)
    parameters = [part for param in model.parameters() for part in (param.data, getattr(param, "ds_tensor", None))]
    state = [value for slots in engine.optimizer.state.values() for value in slots.values()]
    own = storages(parameters)
    held = storages([*state, *(engine.masters if stage else [])])
    grads = [param.grad for param in model.parameters() if param.grad is not None]
    everything = storages([*live_tensors(), *grads, x])
    known = {*before, *own, *held, x.untyped_storage().data_ptr()}
    other = {address: size for address, size in everything.items() if address not in known}
    sizes = {"parameters": own, "optimizer": held, "gradients": other}
    return {name: sum(part.values()) / 2**20 for name, part in sizes.items()}


def theory(stage: int, precision: str, world: int) -> dict[str, float]:
    """What each should be, in megabytes."""
    count = LAYERS * (WIDTH * WIDTH + WIDTH) / 2**20
    size = 2 if precision == "bf16" else 4
    return {
        "parameters": size * count / (world if stage == 3 else 1),
        "gradients": size * count / (world if stage >= 2 else 1),
        "optimizer": 16 * count / world if stage else 12 * count,
    }


def rank(number: int, world: int, out: str) -> None:
    """One rank through all cases."""
    rows = []
    for stage, precision in CASES:
        rows.append({"zero": stage, "precision": precision, "ranks": world, "mb": case(stage, precision)})
        dist.barrier()
    if number == 0:
        (Path(out) / f"{world}.json").write_text(json.dumps(rows))


def report(rows: list[dict[str, Any]]) -> None:
    """Prints the table and writes the results."""
    for row in rows:
        row["theory_mb"] = theory(row["zero"], row["precision"], row["ranks"])
        row["error"] = {name: row["mb"][name] / row["theory_mb"][name] - 1 for name in row["theory_mb"]}
        parts = "  ".join(f"{n} {row['mb'][n]:6.1f} MB ({row['error'][n]:+.1%})" for n in row["theory_mb"])
        print(f"ZeRO {row['zero']} {row['precision']} {row['ranks']} ranks: {parts}")
    claims = [
        claim(
            f"largest deviation of {name} from the theory",
            max(abs(r["error"][name]) for r in rows),
            "share",
            0.15,
            True,
        )
        for name in ("parameters", "gradients", "optimizer")
    ]
    write("zero_memory", rows, claims, ("torch", "deepspeed"))


def main() -> None:
    """Measures and writes the results."""
    ranks.warm_up()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as out:
        for world in WORLDS:
            ranks.join(ranks.start(rank, world, out))
            rows += json.loads((Path(out) / f"{world}.json").read_text())
    report(rows)


if __name__ == "__main__":
    main()
