"""Distils the stages of a finished run to few steps, for `benchmarks.sampling`.

    python -m benchmarks.students runs/demo OUT [--only base-4 ...]

Each student goes to OUT/<stage>-<steps>, trained on the run's own pack and embeddings; the same command goes on where
it was stopped. CPU-seconds and updates of each are in OUT/students.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from dataprep.io import storage
from dataprep.io.storage import read_json, write_json
from pipeline.stages.training_stages import read_stages
from pipeline.store.run import Run
from train.loader.shard_index import index_shards
from train.tasks.diffusion_config import DiffusionTrainingConfig
from train.tasks.distillation import train_distillation
from train.tasks.distillation_config import DistillationTrainingConfig

# stage-steps -> teacher's evaluations for each step, and updates.
STUDENTS: dict[str, tuple[int, int]] = {
    "base-4": (4, 700),
    "base-2": (8, 700),
    "sr64-2": (4, 100),
    "sr64-1": (8, 100),
    "sr256-1": (4, 60),
}
RATE = 1e-3  # of Muon, as in configs/distill.yaml
COSTS = "students.json"


def make_config(
    stage: DiffusionTrainingConfig, teacher: str, steps: int, guidance: float, name: str
) -> DistillationTrainingConfig:
    """Returns the config of a student; ``stage``: its teacher's, ``guidance``: that which the run samples with."""
    each, updates = STUDENTS[name]
    own = stage.model_dump(mode="json") | {"preset": None, "init": None, "task": "distillation", "text_drop": 0.0}
    own["distillation"] = {"teacher": teacher, "steps": steps, "teacher_steps": each, "guidance": guidance}
    own |= {"steps": updates, "optimizer": "muon", "learning_rate": RATE, "warmup_steps": 20, "zero_stage": 0}
    own |= {
        "half_size_steps": 0,
        "ema_decay": 0.99,
        "checkpoint_every": 50,
        "validate_every": 100,
        "sample_every": 0,
        "log_every": 25,
    }
    return DistillationTrainingConfig.model_validate(own, strict=False)


def distill(run: Run, name: str, out: Path) -> dict[str, Any]:
    """Trains a student; returns its figures."""
    artifacts, (stage_name, _, steps) = run.artifacts(), name.partition("-")
    trained = artifacts[f"train.{stage_name}"]
    stage = read_stages({stage_name: trained})[stage_name]
    guidance = run.record()["config"]["sample"]["stages"][stage_name]["guidance"]
    config = make_config(stage, trained.path("export"), int(steps), guidance, name)
    index = out / f"{name}.index"
    pack, embed = artifacts["pack"].files(), artifacts["embed"].files()
    index_shards(pack, embed, config.pixel_columns(), config.min_original).write(str(index))
    before = time.process_time()
    result = train_distillation(str(index), True, config, str(out / name), 0)
    spent = time.process_time() - before
    return {"updates": config.steps, "cpu_seconds": round(spent, 1), "from_step": result["resumed_from"]} | {
        key: result[key] for key in ("loss", "validation_loss")
    }


def main() -> None:
    """Trains every student that is not finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", default=list(STUDENTS), choices=list(STUDENTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    costs = str(given.out / COSTS)
    for name in given.only:
        found = read_json(costs) if storage.exists(costs) else {}
        if name in found:
            continue
        figures = distill(Run(given.run), name, given.out)
        print(name, figures, flush=True)
        write_json(costs, found | {name: figures})


if __name__ == "__main__":
    main()
