"""Measures this machine for the catalog of `imagen-ray plan`: FLOPs, a training step, encoders, JPEG, disk.

Everything is small and takes about a minute: products of matrices and convolutions for the peak, real forward and
backward passes of the config's base for its share of the peak, encoders of random weights for theirs. A stage whose
network does not fit in memory is measured with a smaller one, and the entry says so.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from dataprep.images.decode import decode_rgb
from dataprep.images.resize import resize_square
from dataprep.io.errors import UserError
from dataprep.io.model_imports import declare_torchvision_operators
from dataprep.io.outputs import check_output_file
from dataprep.io.yaml_text import parse_yaml
from pipeline.config import RunConfig
from pipeline.planner.catalog import Machine
from pipeline.planner.encoders import VOCABULARY, estimate_clip_cost, estimate_text_cost
from pipeline.planner.network import build_network, make_step_inputs
from pipeline.planner.training import StageModel
from pipeline.units import format_flops
from train.models.clip_config import ClipModelConfig
from train.models.clip_towers import build_image_tower
from train.timing import peak_tflops

SECONDS = 2.0  # minimum duration of a measurement
MATRIX_SIDE = 2048
STAND_IN = "small-base"  # measured in place of a base that does not fit in memory
JPEG_SIDE = 512  # pixels
DISK_MB = 256


@dataclass(frozen=True)
class Calibration:
    """A catalog entry, and the measurements as text."""

    machine: Machine
    lines: list[str]


def calibrate_machine(config: RunConfig, price: float, network_gbit: float) -> Calibration:
    """Measures this machine for the stages of ``config``; price (dollars per hour) and network (Gbit/s) are given."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda else torch.float32
    matmul, conv = measure_matmul_tflops(device, dtype), measure_conv_tflops(device, dtype)
    data_sheet = peak_tflops(device, None)  # None for an unknown GPU
    tflops = data_sheet or max(matmul, conv)
    memory, ram = _read_memory_gb(device), _read_ram_gb()
    model, what = _choose_base(config, memory)
    step = measure_update_tflops(model, device, dtype)
    tokens, clip = measure_text_rate(config, device, dtype), measure_clip_rate(config, device, dtype)
    encode = max(tokens[1], clip[1])
    images, disk = measure_decode_rate(), measure_disk_speed()
    lines = [
        f"{_read_device_name(device)}: matmul {format_rate(matmul)}, conv {format_rate(conv)} at {_name_dtype(dtype)}",
        f"update of {what}: {format_rate(step)}, MFU {min(1.0, step / tflops):.1%} of {format_rate(tflops)}",
        f"text encoder: {tokens[0]:,.0f} tokens/s, {format_rate(tokens[1])}",
        f"CLIP: {clip[0]:,.1f} images/s, {format_rate(clip[1])}",
        f"JPEG of {JPEG_SIDE} x {JPEG_SIDE} decoded and resized: {images:,.0f}/s per core; disk {disk:,.0f} MB/s",
    ]
    machine = Machine(
        gpus=torch.cuda.device_count() if cuda else 0,
        device=_read_device_name(device),
        memory_gb=round(memory, 1),
        tflops=round(tflops, 4),
        mfu=round(min(1.0, max(1e-4, step / tflops)), 4),
        encode_mfu=round(min(1.0, max(1e-4, encode / tflops)), 4),
        cores=len(os.sched_getaffinity(0)),
        ram_gb=round(ram, 1),
        network_gbit=network_gbit,
        internet_gbit=network_gbit,
        price=price,
        images_per_core=round(images, 1),
        disk_mb_s=round(disk, 1),
        source=f"measured by imagen-ray calibrate, {datetime.now(UTC):%Y-%m-%d}, with {what}; price and network given",
    )
    return Calibration(machine, lines)


def write_entry(path: Path, name: str, machine: Machine) -> None:
    """Adds the machine to the catalog at ``path``; raises UserError for a file that is not a catalog."""
    tree = check_table(path)
    tree["machines"] = dict(tree.get("machines") or {}) | {name: machine.model_dump(exclude_none=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def check_table(path: Path) -> dict[str, Any]:
    """Returns the catalog at ``path``, {} if there is none; UserError if it is another file or cannot be written."""
    check_output_file(path)
    tree = parse_yaml(path.read_bytes(), str(path)) if path.exists() else {}
    if not isinstance(tree or {}, dict) or not isinstance((tree or {}).get("machines") or {}, dict):
        raise UserError(f"--out {path}: the file exists and is not a catalog of machines; give another name")
    return dict(tree or {})


def measure_matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the TFLOP/s of a product of square matrices."""
    a, b = (torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=device, dtype=dtype) for _ in range(2))
    return 2 * MATRIX_SIDE**3 / measure_seconds(lambda: a @ b, device) / 1e12


def measure_conv_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the TFLOP/s of a 3x3 convolution of 256 channels at 32x32, channels last."""
    image = torch.randn(16, 256, 32, 32, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(256, 256, 3, 3, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    operations = 2 * 16 * 256 * 256 * 9 * 32 * 32
    return operations / measure_seconds(lambda: functional.conv2d(image, kernel, padding=1), device) / 1e12


def measure_update_tflops(model: StageModel, device: torch.device, dtype: torch.dtype) -> float:
    """Returns the TFLOP/s of forward and backward passes (three times the forward's operations) at a small batch."""
    batch = 16 if device.type == "cuda" else 4
    net = build_network(model.layout).to(device, dtype)
    given = make_step_inputs(model.layout, batch, model.side, model.tokens, dtype)
    inputs = tree_map_only(torch.Tensor, lambda value: value.to(device), given)

    def step() -> None:
        net(*inputs).float().square().mean().backward()
        net.zero_grad(set_to_none=True)

    return 3 * model.forward * batch / measure_seconds(step, device) / 1e12


def measure_text_rate(config: RunConfig, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Returns (tokens/s, TFLOP/s) of the text encoder's layers with random weights and captions of 20 tokens.

    At most four layers are timed: all are alike.
    """
    declare_torchvision_operators()  # transformers imports torchvision
    from transformers import T5Config, T5EncoderModel

    cost = estimate_text_cost(config.encoder)
    layers = min(4, cost.layers)
    sizes = T5Config(
        vocab_size=VOCABULARY,
        d_model=cost.width,
        d_ff=cost.hidden,
        num_layers=layers,
        num_heads=max(1, cost.inner // 64),
        d_kv=min(64, cost.inner),
        feed_forward_proj="gated-gelu",
    )
    model = T5EncoderModel(sizes).to(device, dtype).eval()
    ids = torch.randint(0, VOCABULARY, (64, 20), device=device)
    each = _measure_inference(lambda: model(input_ids=ids), device)
    tokens = ids.numel() / each * layers / cost.layers
    return tokens, tokens * cost.flops_per_token / 1e12


def measure_clip_rate(config: RunConfig, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Returns (images/s, TFLOP/s) of the image tower of the config's CLIP, with random weights."""
    side, tower = _build_image_tower(config)
    tower = tower.to(device, dtype).eval()
    image = torch.randn(16, 3, side, side, device=device, dtype=dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower(image)
    each = _measure_inference(lambda: tower(image), device)
    return 16 / each, counter.get_total_flops() / each / 1e12


def _build_image_tower(config: RunConfig) -> tuple[int, nn.Module]:
    if config.clip.train is not None:
        own = ClipModelConfig(**config.clip.train.model_dump(include=set(ClipModelConfig.model_fields)))
        return own.image_size, build_image_tower(own)
    declare_torchvision_operators()
    import open_clip

    name = estimate_clip_cost(config.clip, estimate_text_cost(config.encoder)).model
    side = open_clip.get_model_config(name)["vision_cfg"].get("image_size", 224)
    tower: nn.Module = open_clip.create_model(name, pretrained=None, pretrained_hf=False).visual
    return int(side), tower


def measure_decode_rate() -> float:
    """Returns how many JPEGs with the detail of a photograph one core decodes and resizes to 256 pixels per second."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (JPEG_SIDE // 8, JPEG_SIDE // 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((JPEG_SIDE, JPEG_SIDE), Image.Resampling.BICUBIC), np.int16)
    image = np.clip(smooth + random.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=90)
    content = data.getvalue()
    began, done = time.thread_time(), 0
    while time.thread_time() - began < SECONDS:
        resize_square(decode_rgb(content), 256, "centre")
        done += 1
    return done / (time.thread_time() - began)


def measure_disk_speed() -> float:
    """Returns the MB/s of a file written to the temporary folder and synced to disk."""
    block = os.urandom(1 << 20)
    folder = tempfile.mkdtemp(prefix="imagen-ray-")
    try:
        began = time.perf_counter()
        with open(Path(folder) / "block", "wb") as file:
            for _ in range(DISK_MB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return DISK_MB * (1 << 20) / 1e6 / (time.perf_counter() - began)
    finally:
        shutil.rmtree(folder)


def measure_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Returns the seconds per call: the median over `SECONDS`, after one call to warm up."""
    call()
    times: list[float] = []
    ends = time.perf_counter() + SECONDS
    while time.perf_counter() < ends or len(times) < 3:
        _synchronize(device)
        began = time.perf_counter()
        call()
        _synchronize(device)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def _measure_inference(call: Callable[[], Any], device: torch.device) -> float:
    with torch.inference_mode():
        return measure_seconds(call, device)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _choose_base(config: RunConfig, memory_gb: float) -> tuple[StageModel, str]:
    """Returns the config's first stage, or the stand-in if its weights, gradients and activations would not fit."""
    name, stage = next(iter(config.cascade().items()))
    model = StageModel(name, stage, estimate_text_cost(config.encoder).width, 20)
    if model.parameters * 16 < 0.5 * memory_gb * 1e9:
        return model, f"train.{name} ({stage.model})"
    small = stage.model_copy(update={"model": STAND_IN, "model_overrides": {}})
    return StageModel(name, small, model.text_dim, 20), f"{STAND_IN}, since {stage.model} does not fit here"


def _read_memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    return _read_ram_gb()


def _read_ram_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _read_device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines: Mapping[str, str] = {}
    if (info := Path("/proc/cpuinfo")).exists():
        parts = (line.partition(":") for line in info.read_text().splitlines())
        lines = {key.strip(): value.strip() for key, _, value in parts}
    return lines.get("model name", "CPU")


def format_rate(tflops: float) -> str:
    """Returns TFLOP/s as text."""
    return f"{format_flops(tflops * 1e12)}/s"


def _name_dtype(dtype: torch.dtype) -> str:
    return "bf16" if dtype == torch.bfloat16 else "fp32"
