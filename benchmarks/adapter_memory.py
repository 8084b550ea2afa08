"""Memory of full tuning and of LoRA on one rank, ZeRO 0, 2 and 3: weights, gradients, optimizer state with the EMA.

    python -m benchmarks.adapter_memory

Counts the tensors of a training of `tiny-base` between two micro-batches, and the bytes of its checkpoint. The
planner's figures (`pipeline.planner.memory`) stand beside them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from benchmarks.result import make_claim, write_result
from benchmarks.zero_memory import list_live_tensors, map_storages
from pipeline.planner.memory import MemorySetting, estimate_memory
from pipeline.planner.network import Activations, make_step_inputs
from pipeline.planner.training import count_trained_parameters
from train.checkpoint import CheckpointSaver
from train.config import TrainConfig
from train.engine import Engine
from train.models.adapters.config import AdapterConfig
from train.models.adapters.lora import add_lora
from train.models.backbones import build_denoiser, count_parameters, denoiser_config

MODEL, RANK, STAGES = "tiny-base", 16, (0, 2, 3)
PARTS = ("weights", "gradients", "optimizer")


def measure_case(stage: int, adapter: AdapterConfig | None, source: str) -> dict[str, Any]:
    """Returns the MB of each part for a ZeRO stage, and what the planner says."""
    layout = denoiser_config(MODEL)
    before = set(map_storages(list_live_tensors()))
    torch.manual_seed(0)
    model = build_denoiser(layout)
    options: dict[str, Any] = {"batch_size": 2, "accumulation": 2, "zero_stage": stage}
    if adapter is not None:
        add_lora(model, adapter)
        options |= {"init": {"source": source}, "adapter": adapter}
    config = TrainConfig(**options)
    engine = Engine(model, config)
    inputs = make_step_inputs(layout, 1, 16, 8, torch.float32)
    for micro in range(3):  # an update and half of the next
        engine.backward(engine(*inputs).square().mean())
        if micro < 2:
            engine.step(1e-4)
    state = [value for slots in engine.optimizer.state.values() for value in slots.values()]
    weights: list[Any] = [part for p in model.parameters() for part in (p.data, getattr(p, "ds_tensor", None))]
    held = {"weights": map_storages(weights), "optimizer": map_storages([*state, *list_masters(engine)])}
    grads = [param.grad for param in model.parameters() if param.grad is not None]
    given = map_storages(tree_iter(inputs))
    known = {*before, *given, *held["weights"], *held["optimizer"]}
    live = map_storages([*list_live_tensors(), *grads])
    # What else is live between two micro-batches are the gradients, wherever the stage keeps them.
    held["gradients"] = {address: size for address, size in live.items() if address not in known}
    measured = {name: sum(held[name].values()) / 1e6 for name in PARTS}
    trained, whole = count_trained_parameters(layout, adapter), count_parameters(layout)
    frozen = 0 if adapter is None else whole
    setting = MemorySetting("adamw", stage, "none", False, "fp32")
    planned = estimate_memory(trained, setting, 1, Activations(0, 0, frozen=frozen), 1)
    expected = {
        "weights": planned.weights / 1e6,
        "gradients": planned.gradients / 1e6,
        "optimizer": (planned.optimizer + planned.ema) / 1e6,
    }
    row = {"zero": stage, "trained": trained, "kind": "all weights" if adapter is None else f"LoRA, rank {RANK}"}
    return row | {"mb": measured, "planned_mb": expected, "checkpoint_mb": measure_checkpoint(engine, config)}


def list_masters(engine: Engine) -> list[Tensor]:
    """Returns the fp32 masters, which without ZeRO are the weights themselves."""
    return list(engine.masters) if engine.config.zero_stage else []


def measure_checkpoint(engine: Engine, config: TrainConfig) -> float:
    """Returns the MB of a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        saver = CheckpointSaver(engine, folder, config, {})
        saver.save(1, {})
        saver.wait()
        saver.close()
        return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e6


def main() -> None:
    """Measures, prints the table and writes the result."""
    with tempfile.TemporaryDirectory() as folder:
        source = str(Path(folder) / "weights.safetensors")
        network: nn.Module = build_denoiser(denoiser_config(MODEL))
        save_file(network.state_dict(), source)
        kinds = (None, AdapterConfig(rank=RANK))
        rows = [measure_case(stage, adapter, source) for adapter in kinds for stage in STAGES]
    for row in rows:
        parts = "  ".join(f"{name} {row['mb'][name]:6.1f} MB ({row['planned_mb'][name]:6.1f})" for name in PARTS)
        print(f"{row['kind']:14} ZeRO {row['zero']}: {parts}  checkpoint {row['checkpoint_mb']:6.1f} MB")
    full, lora = rows[: len(STAGES)], rows[len(STAGES) :]
    share = max(one["mb"]["optimizer"] / other["mb"]["optimizer"] for one, other in zip(lora, full, strict=True))
    trained = lora[0]["trained"] / full[0]["trained"]
    claims = [
        make_claim("LoRA's optimizer state over its share of the parameters", share / trained, "ratio", 1.05, True),
        make_claim(
            "largest deviation of weights and optimizer state from the planner",
            max(abs(r["mb"][part] / r["planned_mb"][part] - 1) for r in rows for part in ("weights", "optimizer")),
            "share",
            0.1,
            True,
        ),
    ]
    write_result("adapter_memory", rows, claims, ("torch", "deepspeed"))


if __name__ == "__main__":
    main()
