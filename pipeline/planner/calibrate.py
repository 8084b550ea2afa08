"""Measures the machine at hand for the table of `imagen-ray plan`: arithmetic, an update, encoders, JPEG, disk.

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
from torch.utils.flop_counter import FlopCounterMode

from dataprep.decode import decode_rgb, resize_square
from dataprep.schema import UserError
from dataprep.torchvision_operators import declare_torchvision_operators
from pipeline.config import RunConfig, parse_yaml
from pipeline.planner.encoders import VOCABULARY, clip_cost, text_cost
from pipeline.planner.network import step_inputs
from pipeline.planner.table import Machine
from pipeline.planner.training import StageModel
from pipeline.planner.units import flops
from train.models.clip import ClipModelConfig, build_clip
from train.models.unet import UNet, UNetConfig
from train.timing import peak_tflops

SECONDS = 2.0  # that each measurement goes on at least
SIDE = 2048  # of the matrices
STAND_IN = "small-base"  # is measured where the config's base does not fit
PICTURE = 512  # pixels a side of the JPEG that is decoded
DISK_MB = 256


@dataclass(frozen=True)
class Calibration:
    """An entry of the table, and what was measured on the way, in sentences."""

    machine: Machine
    lines: list[str]


def calibrate_machine(config: RunConfig, price: float, network_gbit: float) -> Calibration:
    """Measures for the stages of ``config``. Dollars an hour and Gbit/s cannot be measured and are given."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda else torch.float32
    matmul, conv = matmul_tflops(device, dtype), conv_tflops(device, dtype)
    sheet = peak_tflops(device, None)  # a GPU's data sheet, where it is known
    tflops = sheet or max(matmul, conv)
    memory, ram = _memory_gb(device), _ram_gb()
    model, what = _base(config, memory)
    step = unet_tflops(model, device, dtype)
    tokens, clip = text_rate(config, device, dtype), clip_rate(config, device, dtype)
    encode = max(tokens[1], clip[1])
    images, disk = images_per_core(), disk_mb_s()
    lines = [
        f"{_device_name(device)}: matrices {rate(matmul)}, convolutions {rate(conv)} at {_short(dtype)}",
        f"update of {what}: {rate(step)}, MFU {min(1.0, step / tflops):.1%} of {rate(tflops)}",
        f"text encoder: {tokens[0]:,.0f} tokens a second, {rate(tokens[1])}",
        f"CLIP: {clip[0]:,.1f} images a second, {rate(clip[1])}",
        f"JPEG of {PICTURE} x {PICTURE} decoded and resized: {images:,.0f} a second and core; disk {disk:,.0f} MB/s",
    ]
    machine = Machine(
        gpus=torch.cuda.device_count() if cuda else 0,
        device=_device_name(device),
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
    """Puts the machine into the table at ``path``; what else is there stays. UserError for a file that is no table."""
    tree = parse_yaml(path.read_bytes(), str(path)) if path.exists() else {}
    if not isinstance(tree or {}, dict) or not isinstance((tree or {}).get("machines") or {}, dict):
        raise UserError(f"--out {path}: there is a file that is no table of machines; give another name")
    tree = dict(tree or {})
    tree["machines"] = dict(tree.get("machines") or {}) | {name: machine.model_dump(exclude_none=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """What a product of square matrices reaches."""
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    return 2 * SIDE**3 / seconds_each(lambda: a @ b, device) / 1e12


def conv_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """What a 3x3 convolution of 256 channels at 32x32 reaches, channels last."""
    image = torch.randn(16, 256, 32, 32, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(256, 256, 3, 3, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    operations = 2 * 16 * 256 * 256 * 9 * 32 * 32
    return operations / seconds_each(lambda: functional.conv2d(image, kernel, padding=1), device) / 1e12


def unet_tflops(model: StageModel, device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of forward and backward passes (three forwards' worth) at a small batch."""
    layout = UNetConfig.model_validate_json(model.layout)
    batch = 16 if device.type == "cuda" else 4
    net = UNet(layout).to(device, dtype)
    inputs = {
        name: value.to(device) for name, value in step_inputs(layout, batch, model.side, model.tokens, dtype).items()
    }

    def step() -> None:
        net(**inputs).float().square().mean().backward()
        net.zero_grad(set_to_none=True)

    return 3 * model.forward * batch / seconds_each(step, device) / 1e12


def text_rate(config: RunConfig, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Tokens and TFLOP a second of layers of the text encoder's widths, random weights, captions of 20 tokens.

    Of a large encoder four layers are timed: all are alike.
    """
    declare_torchvision_operators()  # transformers imports torchvision
    from transformers import T5Config, T5EncoderModel

    cost = text_cost(config.encoder)
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
    each = _inference(lambda: model(input_ids=ids), device)
    tokens = ids.numel() / each * layers / cost.layers
    return tokens, tokens * cost.flops_a_token / 1e12


def clip_rate(config: RunConfig, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Images and TFLOP a second of the image tower of the config's CLIP, random weights."""
    side, tower = _image_tower(config)
    tower = tower.to(device, dtype).eval()
    image = torch.randn(16, 3, side, side, device=device, dtype=dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower(image)
    each = _inference(lambda: tower(image), device)
    return 16 / each, counter.get_total_flops() / each / 1e12


def _image_tower(config: RunConfig) -> tuple[int, nn.Module]:
    if config.clip.train is not None:
        own = ClipModelConfig(**config.clip.train.model_dump(include=set(ClipModelConfig.model_fields)))
        small: nn.Module = build_clip(own, VOCABULARY, 1, 0).get_submodule("visual")
        return own.image_size, small
    declare_torchvision_operators()
    import open_clip

    name = clip_cost(config.clip).model
    side = open_clip.get_model_config(name)["vision_cfg"].get("image_size", 224)
    tower: nn.Module = open_clip.create_model(name, pretrained=None, pretrained_hf=False).visual
    return int(side), tower


def images_per_core() -> float:
    """Pictures a second that one core decodes and brings to 256 pixels, of a JPEG as rich as a photograph."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (PICTURE // 8, PICTURE // 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((PICTURE, PICTURE), Image.Resampling.BICUBIC), np.int16)
    picture = np.clip(smooth + random.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=90)
    content = data.getvalue()
    began, done = time.thread_time(), 0
    while time.thread_time() - began < SECONDS:
        resize_square(decode_rgb(content), 256, "centre")
        done += 1
    return done / (time.thread_time() - began)


def disk_mb_s() -> float:
    """MB/s of a file written to the temporary folder and brought to the disk."""
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


def seconds_each(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds a call, the median of several over `SECONDS`, after one that warms up."""
    call()
    times: list[float] = []
    ends = time.perf_counter() + SECONDS
    while time.perf_counter() < ends or len(times) < 3:
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def _inference(call: Callable[[], Any], device: torch.device) -> float:
    with torch.inference_mode():
        return seconds_each(call, device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _base(config: RunConfig, memory_gb: float) -> tuple[StageModel, str]:
    """The config's first stage, or the stand-in where its weights, gradients and activations would not fit."""
    name, stage = next(iter(config.train.items()))
    model = StageModel(name, stage, text_cost(config.encoder).width, 20)
    if model.parameters * 16 < 0.5 * memory_gb * 1e9:
        return model, f"train.{name} ({stage.model})"
    small = stage.model_copy(update={"model": STAND_IN, "unet": {}})
    return StageModel(name, small, model.text_dim, 20), f"{STAND_IN}, since {stage.model} does not fit here"


def _memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    return _ram_gb()


def _ram_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines: Mapping[str, str] = {}
    if (info := Path("/proc/cpuinfo")).exists():
        parts = (line.partition(":") for line in info.read_text().splitlines())
        lines = {key.strip(): value.strip() for key, _, value in parts}
    return lines.get("model name", "CPU")


def rate(tflops: float) -> str:
    """Operations a second, from TFLOP/s."""
    return f"{flops(tflops * 1e12)}/s"


def _short(dtype: torch.dtype) -> str:
    return "bf16" if dtype == torch.bfloat16 else "fp32"
