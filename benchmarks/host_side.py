"""What a training stage asks of the host, measured with the code on the path; run by `benchmarks.host_budget`.

    python benchmarks/host_side.py STAGE.json

Stands alone, since it also measures commits that do not have it: it imports only names that both have, and prints one
JSON object. The device is torch's meta device. What an operator costs on it says nothing of a launch, so the time in
operators of the device is taken out, and the number of launches given beside.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dataprep.io.pack_format import ENCODING_KEY, pixels_column
from dataprep.pack import _encode_pixels, write_pack
from dataprep.pack_config import PackConfig
from dataprep.text.config import EmbedConfig
from dataprep.text.embed import SCHEMA, write_embeddings
from dataprep.text.embedding_codec import encode_embedding
from train.loader.loader import Loader
from train.loader.sampler import SampleRandom
from train.models.backbones import build_denoiser
from train.tasks.diffusion import DiffusionTask
from train.tasks.diffusion_config import DiffusionTrainingConfig

try:
    from train.loader.feed import DeviceFeed
except ImportError:  # of a commit before it
    DeviceFeed = None  # type: ignore[assignment, misc]
    to_device = importlib.import_module("train.loader.loader").to_device

META = torch.device("meta")
ROWS, GROUP = 256, 128  # samples on disk, and rows per row group
MEDIAN_WORDS, SPREAD, TOKENS_PER_WORD = 11, 0.65, 1.4  # of web captions, see `benchmarks.captions`
NOISE = 4.3  # of the images, so that JPEG takes the 2.5 bits per pixel of photographs at 1024 pixels
LEAST_SECONDS = 1.5


class DeviceOperators(TorchDispatchMode):
    """Counts operators that launch a kernel, and bytes from the CPU to the device, and takes the time in both."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.launches = self.copied = self.copies = 0
        self.seconds = 0.0  # of this thread

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = time.thread_time()
        self.calls += 1
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, tuple | list) else [result]
        if not any(isinstance(one, Tensor) and one.is_meta for one in outputs):
            return result
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None and first.device.type == "cpu":
            self.copied, self.copies = self.copied + first.nbytes, self.copies + 1
        elif "empty" not in str(func) and not any(
            one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns
        ):
            self.launches += 1
        self.seconds += time.thread_time() - began
        return result


def measure_mode_seconds() -> float:
    """Returns what `DeviceOperators` costs per operator besides the time that it takes out."""
    value, calls = torch.zeros(1, device=META), 2000
    with DeviceOperators() as counted:
        began = time.thread_time()
        for _ in range(calls):
            value.add_(1)
        spent = time.thread_time() - began
    return (spent - counted.seconds) / calls


def make_image(rng: np.random.Generator, size: int) -> np.ndarray:
    """Returns uint8 RGB (size, size, 3): noise at every scale, and the grain of photographs."""
    out = np.full((size, size, 3), 128, np.float32)
    side, strength = 2, 50.0
    while side <= size:
        out += cv2.resize(rng.normal(0, strength, (side, side, 3)).astype(np.float32), (size, size))
        side, strength = side * 2, strength / 2
    out += rng.normal(0, NOISE, (size, size, 3))
    return np.clip(out, 0, 255).astype(np.uint8)


def write_shards(folder: Path, sizes: list[int], pack: PackConfig, embed: EmbedConfig, width: int) -> dict[str, float]:
    """Writes a pack shard and its embeddings; returns bytes per sample and column. Few images, many times."""
    rng = np.random.default_rng(0)
    images = [make_image(rng, max(sizes)) for _ in range(8)]
    names = [pixels_column(size) for size in sizes]
    encoded = {
        name: [
            _encode_pixels(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), size, pack)
            for image in images
        ]
        for name, size in zip(names, sizes, strict=True)
    }
    keys = [f"{row:09d}" for row in range(ROWS)]
    columns: dict[str, Any] = {"key": keys, "caption": ["a photo"] * ROWS, "split": ["train"] * ROWS}
    columns |= {"captions": [["a photo"]] * ROWS, "original_side": [4096] * ROWS}
    columns |= {name: [data[row % len(data)] for row in range(ROWS)] for name, data in encoded.items()}
    fields = [pa.field(name, pa.string()) for name in ("key", "caption", "split")]
    fields += [pa.field("captions", pa.list_(pa.string())), pa.field("original_side", pa.int32())]
    kinds = {name: pack.encoding_of(size).encode() for name, size in zip(names, sizes, strict=True)}
    fields += [pa.field(name, pa.binary(), metadata={ENCODING_KEY: kind}) for name, kind in kinds.items()]
    config = pack.model_copy(update={"resolutions": tuple(sizes), "row_group_rows": GROUP})
    write_pack(pa.table(columns, schema=pa.schema(fields)), folder / "pack.parquet", config)
    words = np.maximum(1, np.exp(rng.normal(np.log(MEDIAN_WORDS), SPREAD, ROWS)))
    lengths = np.clip(np.rint(words * TOKENS_PER_WORD) + 1, 2, embed.max_length).astype(int)
    rows = []
    for key, length in zip(keys, lengths.tolist(), strict=True):
        data, scale = encode_embedding(rng.standard_normal((length, width), np.float32), embed.codec)
        row = {"key": key, "caption": "a photo", "length": length, "dim": width, "codec": embed.codec}
        rows.append(row | {"embedding": data, "scale": scale})
    write_embeddings(
        pa.Table.from_pylist(rows, schema=SCHEMA), folder / "embed.parquet", embed, [GROUP] * (ROWS // GROUP)
    )
    return {name: float(np.mean([len(one) for one in data])) for name, data in encoded.items()}


def load_batch(loader: Loader, step: int) -> Any:
    """Returns what a loading thread makes."""
    return loader.stored_batch(step) if DeviceFeed is not None else loader.batch(step)


class Now:
    """The threads' parts of a batch: one sends it, one computes with it."""

    def __init__(self, task: DiffusionTask) -> None:
        self.task, self.feed = task, DeviceFeed(META, 0, task.prepare)

    def send(self, batch: Any, step: int) -> Any:
        return self.feed.send(batch, step)

    def use(self, sent: Any, step: int) -> None:
        compute_loss(self.task, *self.feed.receive(sent))


class Before:
    """The same when the thread that computes did everything."""

    def __init__(self, task: DiffusionTask) -> None:
        self.task = task

    def send(self, batch: Any, step: int) -> Any:
        return batch

    def use(self, sent: Any, step: int) -> None:
        indices = sent["index"].tolist()  # which a meta tensor has not; on a GPU it waits for the device
        compute_loss(self.task, to_device(sent, META), SampleRandom(0, step, indices))


def compute_loss(task: DiffusionTask, batch: Any, random: SampleRandom) -> None:
    """Computes the loss around a network that does nothing."""
    task.loss(lambda x_BCHW, log_snr_B, conditions: torch.empty_like(x_BCHW), batch, random)


def measure_stage(given: dict[str, Any]) -> dict[str, Any]:
    """Returns milliseconds, bytes and launches of one stage: of the loading threads per sample, else per batch."""
    config = DiffusionTrainingConfig(**given["train"])
    task, batch = DiffusionTask(config, given["width"]), given["batch"]
    sizes = [size for size in (config.resolution, config.low_resolution) if size is not None]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        stored = write_shards(folder, sizes, PackConfig(**given["pack"]), EmbedConfig(**given["embed"]), given["width"])
        packs, embeds = [str(folder / "pack.parquet")], [str(folder / "embed.parquet")]
        loader = Loader(packs, embeds, config.pixel_columns(), "train", 0, batch, config.crop, config.data)
        steps, spent = measure_loader(loader)
        reading = measure_reading(loader) / ROWS
        ready = [load_batch(loader, step) for step in range(4)]
    side: Now | Before = Now(task) if DeviceFeed is not None else Before(task)
    side.use(side.send(ready[0], 0), 0)
    mode = measure_mode_seconds()
    operators = {"feed": DeviceOperators(), "thread": DeviceOperators()}
    seconds, uses = dict.fromkeys(operators, 0.0), 0
    while sum(seconds.values()) < LEAST_SECONDS or uses < 4:
        began = time.thread_time()
        with operators["feed"]:
            sent = side.send(ready[uses % 4], uses)
        middle = time.thread_time()
        with operators["thread"]:
            side.use(sent, uses)
        seconds["feed"] += middle - began
        seconds["thread"] += time.thread_time() - middle
        uses += 1
    found: dict[str, Any] = {"load_ms": 1e3 * (spent / (steps * batch) + reading), "reading_ms": 1e3 * reading}
    for name, counted in operators.items():
        own = seconds[name] - counted.seconds - mode * counted.calls
        found[f"{name}_ms_per_batch"] = 1e3 * max(0.0, own) / uses
        found[f"{name}_launches"] = counted.launches / uses
    found["copies"] = sum(counted.copies for counted in operators.values()) / uses
    found["bytes_to_device"] = sum(counted.copied for counted in operators.values()) / (uses * batch)
    return found | {"stored_bytes": stored}


def measure_loader(loader: Loader) -> tuple[int, float]:
    """Returns the batches loaded and the CPU-seconds of this process for them, its row groups in memory."""
    load_batch(loader, 0)
    began, spent, steps = time.process_time(), 0.0, 0
    while spent < LEAST_SECONDS or steps < 4:
        load_batch(loader, steps)
        spent, steps = time.process_time() - began, steps + 1
    return steps, spent


def measure_reading(loader: Loader) -> float:
    """Returns the CPU-seconds to read every row group once more, without checksums, which only a first read has."""
    groups = range(len(loader.reader.rows))
    for number in groups:
        loader.reader.read(number)
    began = time.process_time()
    for number in groups:
        loader.reader.read(number)
    return time.process_time() - began


def count_network_launches(given: dict[str, Any]) -> int:
    """Returns the operators of the network's forward and backward pass of a micro-batch, one by one (not compiled)."""
    from train.models.base import Conditions

    config = DiffusionTrainingConfig(**given["train"])
    side, batch, tokens = config.crop or config.resolution, given["batch"], 64
    with META:
        model = build_denoiser(config.denoiser_config(given["width"]))
        image, level = torch.empty(batch, 3, side, side), torch.empty(batch)
        conditions = Conditions(
            text_BLD=torch.empty(batch, tokens, given["width"]),
            text_mask_BL=torch.empty(batch, tokens, dtype=torch.bool),
            text_keep_B=torch.empty(batch, dtype=torch.bool),
        )
        if config.low_resolution:
            conditions = conditions._replace(lowres_BCHW=image, lowres_log_snr_B=level)
        with DeviceOperators() as counter:
            model(image, level, conditions).sum().backward()
    return counter.launches


def main() -> None:
    """Prints the figures of the stage that the JSON file describes."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    given = json.loads(Path(sys.argv[1]).read_text())
    found = measure_stage(given)
    if given.get("network"):
        found["network_launches"] = count_network_launches(given)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
