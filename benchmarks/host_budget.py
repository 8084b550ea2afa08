"""What a training stage asks of the host per sample, before and now, against the appetite of a GPU.

    python -m benchmarks.host_budget [COMMIT]

For every stage of `configs/imagen.yaml`, `laion.yaml` and `small_team.yaml`, at its micro-batch per rank:
CPU-milliseconds of the threads that load batches (reading, decompression, decoding, gathering), of the one that feeds
the device (copies, unpacking, draws) and of the training thread (the objective around the network; before, also what
the feeding thread does now), bytes to the device, and operators launched. ``COMMIT`` is what "before" is measured with,
from its own files, in the same run.

There is no GPU in it. What a thread does besides operators of the device is measured; each such operator and each copy
is counted as `LAUNCH_US`, which is assumed. A copy from pageable memory, which a GPU's driver makes through a staging
buffer while the thread waits, is counted as a copy in memory of these bytes besides. Images are synthetic with the bits
per pixel of photographs, captions have the lengths of web captions. Not counted: the network, its gradient, and the
optimizer, and that the thread waited for the device at each such copy.

A GPU's appetite is 50% of its dense peak over three forward passes per sample. A stage is fed if two cores do what a
GPU asks for, and the training thread less than one of them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.earlier import ROOT, extract_commit, run_script
from benchmarks.result import make_claim, write_result
from pipeline.config import RunConfig
from pipeline.config_loading import load_config
from pipeline.planner.catalog import Assumptions
from pipeline.planner.encoders import estimate_text_cost
from pipeline.planner.training import StageModel
from train.timing import PEAK_TFLOPS

BEFORE = "16e0a72"
CONFIGS = ("imagen", "laion", "small_team")
GPUS, MFU, CORES, CORES_PER_GPU, TARGET = ("H100", "H200"), 0.5, 16, 2.0, 0.2
XXL_WIDTH = 4096
LAUNCH_US = 6.0  # of CPU time to dispatch and launch a kernel from eager PyTorch; assumed, not measured


def describe_stage(config: RunConfig, name: str, width: int) -> dict[str, Any]:
    """Returns what `benchmarks.host_side` needs to know of a stage."""
    stage = config.cascade()[name]
    return {
        "train": stage.model_dump(mode="json", exclude_defaults=True)
        | {"preset": None, "zero_stage": 0},  # no optimizer is built
        "pack": config.pack.model_dump(mode="json", exclude_defaults=True),
        "embed": config.embed.model_dump(mode="json", exclude_defaults=True),
        "width": width,
        "batch": stage.batch_size // ((config.cluster.ranks or 8) * stage.accumulation),
    }


def measure_side(tree: Path, stage: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures of a stage with the code in ``tree``, in a process of its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(stage, file)
        file.flush()
        found: dict[str, Any] = run_script(tree, "host_side.py", file.name)
    return found


def measure_copy_rate() -> float:
    """Returns the CPU-milliseconds to copy a byte in memory."""
    source, target = torch.ones(1 << 26, dtype=torch.uint8), torch.ones(1 << 26, dtype=torch.uint8)
    best = 1e9
    for _ in range(5):
        began = time.thread_time()
        target.copy_(source)
        best = min(best, time.thread_time() - began)
    return 1e3 * best / source.nbytes


def make_row(
    stage: str, side: str, found: dict[str, Any], model: StageModel, batch: int, rate: float
) -> dict[str, Any]:
    """Returns a row of the result; ``rate``: milliseconds per byte that a thread copies from pageable memory."""
    copying, copies = rate * found["bytes_to_device"], found["copies"]
    feed, thread = (
        (found[f"{name}_ms_per_batch"] + LAUNCH_US / 1e3 * found[f"{name}_launches"]) / batch
        for name in ("feed", "thread")
    )
    if side == "before":
        thread += copying + LAUNCH_US / 1e3 * copies / batch
    else:
        feed += LAUNCH_US / 1e3 * copies / batch
    total = found["load_ms"] + feed + thread
    appetite = {gpu: MFU * PEAK_TFLOPS[gpu] * 1e12 / (3 * model.forward) for gpu in GPUS}
    most = max(appetite.values())
    return {
        "stage": stage,
        "code": side,
        "micro_batch": batch,
        "training_thread_ms": round(thread, 4),
        "feeding_thread_ms": round(feed, 4),
        "loading_threads_ms": round(found["load_ms"], 4),
        "of_which_reading_ms": round(found["reading_ms"], 4),
        "bytes_to_device": round(found["bytes_to_device"]),
        "copies_per_batch": copies,
        "launches_per_batch": {"training": found["thread_launches"], "feeding": found["feed_launches"]},
        **{f"{key}_per_batch": found[key] for key in ("network_launches",) if key in found},
        "stored_bytes": {name: round(size) for name, size in found["stored_bytes"].items()},
        "samples_per_second_of_16_cores": round(1e3 * CORES / total),
        **{f"samples_per_second_of_a_{gpu}": round(rate) for gpu, rate in appetite.items()},
        "cores_per_gpu": round(most * total / 1e3, 2),
        "training_thread_share": round(most * thread / 1e3, 3),
    }


def explain(row: dict[str, Any]) -> str:
    """Returns why a stage is not fed by two cores per GPU; empty if it is."""
    if row["cores_per_gpu"] <= CORES_PER_GPU and row["training_thread_share"] <= 1:
        return ""
    parts = {name: row[f"{name}_ms"] for name in ("training_thread", "feeding_thread", "loading_threads")}
    most = max(parts, key=lambda name: parts[name])
    asked, spent = row["samples_per_second_of_a_H100"], sum(parts.values())
    return (
        f"not fed: the network is so small that a GPU at 50% MFU asks for {asked} samples/s, each of {spent:.2f} ms of "
        f"CPU, {parts[most]:.2f} of them in the {most.replace('_', ' ')}: {row['cores_per_gpu']} cores"
    )


def make_claims(rows: list[dict[str, Any]], widths: dict[str, int]) -> list[dict[str, Any]]:
    """Returns the claims about the rows."""
    before, now = ({row["stage"]: row for row in rows if row["code"] == side} for side in ("before", "now"))
    claims = []
    for stage, row in now.items():
        ratio = row["training_thread_ms"] / before[stage]["training_thread_ms"]
        if widths[stage] == XXL_WIDTH:
            text = f"{stage}: CPU of the training thread per sample, now over before"
            claims.append(make_claim(text, ratio, "times", TARGET, at_most=True))
    for stage, row in now.items():
        text = f"{stage}: cores that feed one GPU at 50% MFU"
        claims.append(make_claim(text, row["cores_per_gpu"], "cores", CORES_PER_GPU, at_most=True))
    return claims


def main() -> None:
    """Measures every stage with both trees in turn; writes the result."""
    commit = sys.argv[1] if len(sys.argv) > 1 else BEFORE
    rows: list[dict[str, Any]] = []
    widths: dict[str, int] = {}
    rate = measure_copy_rate()
    with tempfile.TemporaryDirectory(prefix="imagen-ray-bench-") as scratch:
        extract_commit(commit, Path(scratch))
        for name in CONFIGS:
            config = load_config(str(ROOT / "configs" / f"{name}.yaml"), [])
            width, tokens = estimate_text_cost(config.encoder).width, Assumptions().padded_tokens
            for stage_name, stage in config.cascade().items():
                label = f"{name} {stage_name}"
                widths[label], given = width, describe_stage(config, stage_name, width)
                model = StageModel(stage_name, stage, width, tokens)
                for side, tree in (("before", Path(scratch)), ("now", ROOT)):
                    found = measure_side(tree, given | {"network": side == "now"})
                    row = make_row(label, side, found, model, given["batch"], rate)
                    rows.append(row | ({"why": explain(row)} if side == "now" else {}))
                    print(rows[-1], flush=True)
    write_result(
        "host_budget", rows, make_claims(rows, widths), ("torch", "numpy", "pyarrow", "simplejpeg"), before=commit
    )


if __name__ == "__main__":
    main()
