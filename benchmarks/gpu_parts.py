"""The parts of `benchmarks.gpu_check`. Each runs in a process of its own and returns rows of its result."""

from __future__ import annotations

import gc
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.captions import make_captions
from benchmarks.gpu_data import encode_pixels, write_training_data
from dataprep.io.storage import read_json_lines

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Sizes:
    """How large everything is: `FULL` on a GPU, `TINY` where only the code is tested."""

    width: int  # of the text embeddings
    encoder: dict[str, int]  # sizes of a T5
    captions: int
    clip: str
    pairs: int
    trainings: dict[str, dict[str, Any]]  # name -> keys of DiffusionTrainingConfig
    samples: dict[str, tuple[str, int, int | None, int]]  # stage -> preset, resolution, low resolution, images
    evaluations: int  # of a sampling stage
    resumed: dict[str, Any] = field(default_factory=dict)


X0 = {"prediction": "x0", "lowres_max_level": 0.3}
FULL = Sizes(
    width=4096,
    encoder={"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},  # T5 v1.1 XXL
    captions=4096,
    clip="ViT-L-14",
    pairs=2048,
    trainings={
        "base": {"model": "imagen-base-300m", "resolution": 64, "batch_size": 128, "steps": 200, "compile": True},
        "sr256": {
            "model": "imagen-sr256-600m",
            "resolution": 256,
            "low_resolution": 64,
            "batch_size": 32,
            "steps": 40,
        },
        "sr1024": {
            "model": "imagen-sr1024-400m",
            "resolution": 1024,
            "low_resolution": 256,
            "crop": 256,
            "batch_size": 32,
            "steps": 40,
        },
    },
    samples={
        "base": ("imagen-base-300m", 64, None, 16),
        "sr256": ("imagen-sr256-600m", 256, 64, 16),
        "sr1024": ("imagen-sr1024-400m", 1024, 256, 4),
    },
    evaluations=16,
    resumed={"model": "tiny-base", "resolution": 16, "batch_size": 64},
)
TINY = Sizes(
    width=8,
    encoder={"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    captions=32,
    clip="ViT-S-32-alt",
    pairs=4,
    trainings={
        "base": {"model": "micro-base", "resolution": 16, "batch_size": 4, "steps": 12},
        "sr32": {
            "model": "micro-sr",
            "resolution": 32,
            "low_resolution": 16,
            "diffusion": X0,
            "batch_size": 4,
            "steps": 6,
        },
        "sr64": {
            "model": "micro-sr",
            "resolution": 64,
            "low_resolution": 32,
            "crop": 32,
            "diffusion": X0,
            "batch_size": 4,
            "steps": 6,
        },
    },
    samples={"base": ("micro-base", 16, None, 2), "sr": ("micro-sr", 32, 16, 2)},
    evaluations=2,
    resumed={"model": "micro-base", "resolution": 16, "batch_size": 4},
)


def wait_for(device: str) -> None:
    """Waits for what the device was given to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def run_smoke(sizes: Sizes, device: str, folder: Path) -> list[Row]:
    """Runs every stage of configs/smoke.yaml as a user would."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pipeline", "run", "configs/smoke.yaml", f"run={folder / 'smoke'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    assert (folder / "smoke/report.html").exists()
    return [{"config": "smoke", "seconds": round(time.monotonic() - began, 1)}]


def train_case(settings: dict[str, Any], width: int, folder: Path) -> list[Row]:
    """Trains on data that it writes below ``folder``, if none is there; returns the rows of the log."""
    from train.loader.shard_index import index_shards
    from train.tasks.diffusion import train_diffusion
    from train.tasks.diffusion_config import DiffusionTrainingConfig

    config = DiffusionTrainingConfig(**settings)
    pixels = tuple(size for size in (config.resolution, config.low_resolution) if size)
    index = folder / "data/index.parquet"
    if not index.exists():
        pack, embed = write_training_data(folder / "data", 4 * config.batch_size, pixels, width)
        index_shards(pack, embed, config.pixel_columns()).write(str(index))
    train_diffusion(str(index), False, config, str(folder / "run"), 0)
    return read_json_lines(str(folder / "run/log.jsonl"))


def run_training(name: str, sizes: Sizes, device: str, folder: Path) -> list[Row]:
    """Trains a preset through the real loop; halves the micro-batch where memory ends."""
    every = {"learning_rate": 1e-4, "warmup_steps": 5, "log_every": 2 if sizes is TINY else 10, "workers": 4}
    settings = every | sizes.trainings[name] | {"checkpoint_every": 10**6, "keep_last": 1}
    for halvings in range(6):
        settings["accumulation"] = 2**halvings
        try:
            log = train_case(settings, sizes.width, folder / f"{name}-{halvings}")
            break
        except torch.OutOfMemoryError:
            gc.collect()
            torch.cuda.empty_cache()
    else:
        raise RuntimeError(f"{name}: not even {settings['batch_size'] // settings['accumulation']} samples fit")
    steady = [row for row in log if row["step"] > settings["steps"] // 4]  # without start and compilation
    wall_ms = 1000 * settings["batch_size"] / np.array([row["samples_per_second"] for row in steady])
    busy_ms = np.array([sum(row[f"{part}_ms"] for part in ("forward", "backward", "step")) for row in steady])
    mfu = [row["mfu"] for row in steady if row.get("mfu") is not None]
    return [
        {
            "training": name,
            **{key: settings.get(key) for key in ("model", "batch_size", "accumulation", "steps", "compile")},
            "images_per_second": round(float(1000 * settings["batch_size"] / wall_ms.mean()), 1),
            "mfu": round(float(np.mean(mfu)), 4) if mfu else None,
            "share_waiting": round(float(1 - (busy_ms / wall_ms).mean()), 4),
            "data_ms": round(float(np.mean([row["data_ms"] for row in steady])), 2),
            "memory_mb": max(row["memory_mb"] for row in log),
            "losses": [[row["step"], row["loss"]] for row in log],
        }
    ]


def run_embed(sizes: Sizes, device: str, folder: Path) -> list[Row]:
    """Embeds a pack with a T5 of T5-XXL's size and random weights, as the workers of stage `embed` do."""
    from benchmarks.embed import build_tokenizer
    from dataprep.io.device_settings import configure_device
    from dataprep.io.model_imports import import_transformers
    from dataprep.io.parquet import write_table
    from dataprep.text.config import EmbedConfig
    from dataprep.text.embed import embed_shard
    from dataprep.text.encoder import TextEncoder

    configure_device(device)
    transformers, tokenizer = import_transformers(), build_tokenizer()
    layout = transformers.T5Config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", **sizes.encoder)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = transformers.T5EncoderModel(layout).eval().requires_grad_(False)
    torch.set_default_dtype(before)
    encoder = TextEncoder(model, tokenizer, 256, device, EmbedConfig().token_budget)
    captions = make_captions(sizes.captions, 2000, np.random.default_rng(0))
    table = {"key": [str(index) for index in range(len(captions))], "captions": [[text] for text in captions]}
    write_table(pa.table(table), folder / "pack.parquet", "pack")
    config = EmbedConfig(codec="int8")
    encoder.encode(captions[:64])  # kernels are chosen and memory is allocated
    wait_for(device)
    began = time.monotonic()
    counted = embed_shard(folder / "pack.parquet", folder / "embed.parquet", encoder, config)
    seconds = time.monotonic() - began
    rates = {"captions_per_second": round(len(captions) / seconds, 1)}
    rates["tokens_per_second"] = round(counted["tokens"] / seconds, 1)
    return [{"parameters": sum(p.numel() for p in model.parameters()), "captions": len(captions), **rates}]


def run_score(sizes: Sizes, device: str, folder: Path) -> list[Row]:
    """Scores a tar of JPEGs with a CLIP of random weights, as the workers of stage `score` do."""
    from benchmarks.captions import make_photo
    from dataprep.images.decode import decode_rgb, read_shard_images
    from dataprep.io.model_imports import import_open_clip
    from dataprep.io.parquet import write_table
    from eval.clip.score_shard import score_shard
    from eval.clip.scorer import ClipScorer

    torch.save(import_open_clip().create_model(sizes.clip, pretrained=None).state_dict(), folder / "clip.pt")
    scorer = ClipScorer.load({"model": sizes.clip, "pretrained": str(folder / "clip.pt")}, device)
    rng = np.random.default_rng(0)
    jpegs = [encode_pixels(make_photo(rng, 256), 256, "jpeg") for _ in range(min(sizes.pairs, 64))]
    keys = [f"{index:09d}" for index in range(sizes.pairs)]
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for index, key in enumerate(keys):
            info = tarfile.TarInfo(f"{key}.jpg")
            info.size = len(jpegs[index % len(jpegs)])
            tar.addfile(info, io.BytesIO(jpegs[index % len(jpegs)]))
    table = pa.table({"key": keys, "caption": make_captions(sizes.pairs, 2000, rng)})
    write_table(table, folder / "00000.parquet", "download")
    scorer.image_features([np.zeros((256, 256, 3), np.uint8)] * scorer.batch_size)
    wait_for(device)
    began = time.monotonic()
    images = read_shard_images(folder / "00000.tar")
    threads = max(1, (os.cpu_count() or 1) // 2)  # as many as the workers of a machine with one GPU have
    table_path, out = folder / "00000.parquet", folder / "scores.parquet"
    counted = score_shard(images, table_path, out, scorer, decode=decode_rgb, threads=threads)
    assert counted["scored"] == sizes.pairs
    rate = round(sizes.pairs / (time.monotonic() - began), 1)
    return [{"model": sizes.clip, "pairs": sizes.pairs, "images_per_second": rate}]


def run_sampling(sizes: Sizes, device: str, folder: Path) -> list[Row]:
    """Samples with each stage alone, guided, as a cascade does."""
    from dataprep.io.device_settings import configure_device
    from eval.sampling.config import SamplingConfig, StageEntry
    from eval.sampling.stage_sampler import EncodedPrompts, LoadedStage, SamplerInputs, sample_stage
    from train.diffusion.config import DiffusionConfig
    from train.models.backbones import build_denoiser, denoiser_config

    configure_device(device)
    rows = []
    for name, (preset, resolution, low, images) in sizes.samples.items():
        with torch.device(device):
            model: Any = build_denoiser(denoiser_config(preset, {"text_dim": sizes.width})).eval()
        model.requires_grad_(False).to(torch.bfloat16 if device.startswith("cuda") else torch.float32)
        entry = StageEntry(name=name, resolution=resolution, low_resolution=low, path=".")
        stage = LoadedStage(entry, model, DiffusionConfig(prediction="x0" if low else "v"))
        settings = SamplingConfig(steps=sizes.evaluations, guidance=4.0)
        text = EncodedPrompts(torch.randn(images, 32, sizes.width, device=device), None)
        lowres = None if low is None else torch.rand(images, 3, low, low, device=device) * 2 - 1
        seeds, seconds = [(0, index) for index in range(images)], 0.0
        for _ in range(2):  # the first chooses kernels
            wait_for(device)
            began = time.monotonic()
            with torch.no_grad():
                sampled = sample_stage(stage, settings, SamplerInputs(text, lowres_BCHW=lowres), seeds)
            assert sampled.shape == (images, 3, resolution, resolution) and bool(sampled.isfinite().all())
            seconds = time.monotonic() - began
        memory = torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else None
        row: Row = {"stage": name, "model": preset, "images": images, "evaluations": sizes.evaluations}
        row |= {"images_per_second": round(images / seconds, 3), "ms_per_evaluation": 1000 * seconds / settings.steps}
        rows.append(row | {"peak_mb": memory})
        del model, stage
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return rows


RESUMED_STEPS, KILLED_AT = 40, 20


def train_resumable(sizes: Sizes, folder: Path) -> list[Row]:
    """Trains a small stage with repeatable results and frequent checkpoints."""
    settings: dict[str, Any] = {"steps": RESUMED_STEPS, "log_every": 2, "checkpoint_every": 10, "overlap_save": 0}
    settings |= {"deterministic": True, "learning_rate": 1e-3, "warmup_steps": 5, "workers": 2}
    return train_case(settings | sizes.resumed, sizes.width, folder)


def run_resume(sizes: Sizes, device: str, folder: Path) -> list[Row]:
    """Kills a training with SIGKILL, resumes it, and compares its losses with an uninterrupted one's."""
    train_resumable(sizes, folder / "whole")
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", device, "--part", "resumable"]
    command += ["--scratch", str(folder / "killed"), *(["--tiny"] if sizes is TINY else [])]
    log = folder / "killed/run/log.jsonl"
    child = subprocess.Popen(command, cwd=ROOT)
    while child.poll() is None and not (log.exists() and _last_step(log) >= KILLED_AT):
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    killed = child.wait() == -signal.SIGKILL
    reached = _last_step(log)
    resumed = train_resumable(sizes, folder / "killed")
    whole = read_json_lines(str(folder / "whole/run/log.jsonl"))
    losses = [np.array([row["loss"] for row in rows]) for rows in (whole, resumed)]
    difference = float(np.abs(losses[1] / losses[0] - 1).max())
    return [{"killed": killed, "killed_at_step": reached, "steps": RESUMED_STEPS, "largest_difference": difference}]


def _last_step(log: Path) -> int:
    rows = read_json_lines(str(log)) if log.exists() else []
    return int(rows[-1]["step"]) if rows else 0


def run_resumable(sizes: Sizes, device: str, folder: Path) -> list[Row]:
    """The training that `run_resume` kills."""
    return train_resumable(sizes, folder)


Part = Callable[[Sizes, str, Path], list[Row]]


def list_parts(sizes: Sizes) -> dict[str, Part]:
    """Returns the parts by name, in their order."""

    def training(name: str) -> Part:
        return lambda sizes, device, folder: run_training(name, sizes, device, folder)

    parts: dict[str, Part] = {"smoke": run_smoke}
    parts |= {f"train_{name}": training(name) for name in sizes.trainings}
    return parts | {"embed": run_embed, "score": run_score, "sampling": run_sampling, "resume": run_resume}
