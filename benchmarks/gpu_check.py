"""Everything that needs a GPU to be known, in one command of at most ten minutes: `make gpu-check`.

    python -m benchmarks.gpu_check                       # on the GPU of this machine
    python -m benchmarks.gpu_check --device cpu --tiny   # tests the script itself, on a CPU; writes no figures

In this order: the smoke config; `imagen-base-300m` and the super-resolution presets trained through the real loop from
a pack on disk (images per second, MFU, the share of an update's time outside of its work on the device, the losses); a
T5-XXL with random weights that embeds captions; CLIP ViT-L/14 that scores JPEGs; sampling, stage by stage; a training
that is killed and resumed. Each part runs in a process of its own and writes ``benchmarks/results/gpu_<part>.json``
with the GPU's name; a part that fails, or for which no time is left, says so there. Exit status: 0 if all parts ran, 1
if one failed or was left out, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts import FULL, ROOT, TINY, list_parts, run_resumable
from benchmarks.result import RESULTS, describe_machine, make_claim, make_result, save_result

BUDGET_SECONDS = 600.0
LEAST_SECONDS = 20.0  # for which a part is worth beginning
PACKAGES = ("torch", "deepspeed", "transformers", "open_clip_torch")
WAITING_TARGET, MFU_TARGET = 0.05, 0.35


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Returns the options; exits with status 2 for unknown ones, and where there is no GPU."""
    parser = argparse.ArgumentParser("benchmarks.gpu_check", description="checks and measures everything on a GPU")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="sizes that test the script; no figures are kept")
    parser.add_argument("--out", type=Path, help="folder of the results; default: benchmarks/results")
    parser.add_argument("--only", nargs="+", metavar="PART", help=f"of {', '.join(list_parts(FULL))}")
    parser.add_argument("--seconds", type=float, default=BUDGET_SECONDS, help="for all parts together")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # run this one here: a child of the command
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu takes hours at full size; add --tiny, which tests the script")
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.exit(2, "gpu-check needs a CUDA GPU, and torch finds none; --device cpu --tiny tests the script\n")
    if unknown := sorted(set(options.only or ()).difference(list_parts(TINY if options.tiny else FULL))):
        parser.error(f"--only {unknown[0]}: no such part; take some of {', '.join(list_parts(FULL))}")
    return options


def run_child(part: str, options: argparse.Namespace, scratch: Path, seconds: float) -> dict[str, Any]:
    """Runs a part in a process of its own; returns its rows, or its error, and how long it took."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", options.device, "--part", part]
    command += ["--scratch", str(scratch), *(["--tiny"] if options.tiny else [])]
    env = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {})
    began, result = time.monotonic(), scratch / "rows.json"
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=seconds)
        error = None if done.returncode == 0 else (done.stderr or done.stdout).strip()[-2000:]
    except subprocess.TimeoutExpired:
        error = f"not finished after {seconds:.0f} s"
    rows = json.loads(result.read_text()) if error is None else []
    return {"rows": rows, "error": error, "seconds": round(time.monotonic() - began, 1)}


def make_claims(part: str, rows: list[dict[str, Any]], error: str | None) -> list[dict[str, Any]]:
    """Returns the claims of a part."""
    claims = [make_claim(f"{part} ran to its end", float(error is None), "yes or no", 1.0)]
    for row in rows:
        if "share_waiting" in row:
            text = f"{row['model']}: share of an update's time outside of its work on the device"
            claims.append(make_claim(text, row["share_waiting"], "share", WAITING_TARGET, at_most=True))
        if row.get("mfu") is not None:
            claims.append(make_claim(f"{row['model']}: MFU", row["mfu"], "share", MFU_TARGET))
        if "losses" in row:
            first, last = row["losses"][0][1], row["losses"][-1][1]
            claims.append(make_claim(f"{row['model']}: last loss over the first", last / first, "x", 1.0, at_most=True))
        if "largest_difference" in row:
            text = "largest relative difference of a loss after a kill and a resume, with deterministic: true"
            claims.append(make_claim(text, row["largest_difference"], "share", 0.0, at_most=True))
    return claims


def describe_gpu(device: str) -> dict[str, Any] | None:
    """Returns the name and the memory of a GPU; None for a CPU."""
    if device == "cpu":
        return None
    properties = torch.cuda.get_device_properties(torch.device(device))
    return {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}


def check_all(options: argparse.Namespace) -> int:
    """Runs the parts, writes their results, and returns the exit status."""
    deadline, failed = time.monotonic() + options.seconds, list[str]()
    out = options.out or RESULTS
    gpu = describe_gpu(options.device)
    parts = [name for name in list_parts(TINY if options.tiny else FULL) if not options.only or name in options.only]
    for part in parts:
        left = deadline - time.monotonic()
        with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch:
            if left < LEAST_SECONDS:
                found: dict[str, Any] = {"rows": [], "error": "left out: no time was left", "seconds": 0.0}
            else:
                found = run_child(part, options, Path(scratch), left)
        print(f"{part}: {found['error'] or 'done'} ({found['seconds']} s)", flush=True)
        failed += [part] if found["error"] else []
        claims = make_claims(part, found["rows"], found["error"])
        machine = describe_machine() | {"gpu": gpu}
        more = {"machine": machine, "seconds": found["seconds"], "error": found["error"]}
        save_result(make_result(f"gpu_{part}", found["rows"], claims, PACKAGES, **more), out)
    return 1 if failed else 0


def main() -> None:
    """Runs the command, or as its child one part."""
    options = parse_arguments(sys.argv[1:])
    sizes = TINY if options.tiny else FULL
    if options.part is None:
        if options.device == "cpu" and options.out is None:
            raise SystemExit("--device cpu: give --out FOLDER; figures of a CPU are not kept beside those of GPUs")
        sys.exit(check_all(options))
    options.scratch.mkdir(parents=True, exist_ok=True)
    run = (list_parts(sizes) | {"resumable": run_resumable})[options.part]
    rows = run(sizes, options.device, options.scratch)
    (options.scratch / "rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
