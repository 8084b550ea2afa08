"""Stages of the frozen models: the text encoder and CLIP, taken as they are or trained here on the run's own pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dataprep import storage
from dataprep.pack import PackConfig, pack_shard
from dataprep.schema import UserError, read_table
from dataprep.text import TextEncoder, check_encoder
from eval.clip import ClipScorer, check_spec
from pipeline.config import STORED_PIXELS, ContrastiveConfig, PretrainConfig, RunConfig
from pipeline.context import Context
from pipeline.fingerprint import digest
from pipeline.steps.learn import fit
from pipeline.store import Artifact, Shard
from train.data import CaptionLoader, Loader
from train.loop import train as train_loop
from train.tasks.clip import ClipTask
from train.tasks.t5 import T5Task

SPEC = "model.json"  # where the model is: {"model": ...} from outside, or {"model": null} for the one trained here
EXPORT = "export"
PAIRS = "pairs"  # what CLIP is trained on, packed for that alone


# ---------------------------------------------------------------------------------------------- text encoder


def encoder_sources(config: RunConfig) -> list[str]:
    """The files of a local encoder folder, checked; none for a hub name or one pretrained here."""
    if config.encoder.model is None or not check_encoder(config.encoder.model):
        return []
    return _files(config.encoder.model)


def encoder(ctx: Context) -> None:
    """The frozen text encoder: loaded once as a check, or pretrained on the captions."""
    config = ctx.config["encoder"]
    if config.pretrain is None:
        found = TextEncoder.from_folder(storage.local_folder(config.model), "bfloat16")  # half the memory, on the head
        ctx.counters["dim"] = found.dim
    else:
        captions = [caption for path in ctx.inputs["download"].files() for caption in _captions(path)]
        fit(ctx, fit_t5, {"captions": captions}, config.pretrain)
    storage.write_json(ctx.path(SPEC), {"model": _known(config.model)})


def fit_t5(captions: Sequence[str], config: PretrainConfig, folder: str, seed: int) -> dict[str, Any]:
    """Pretrains the text encoder on this rank."""
    return train_loop(T5Task(config, captions), config, CaptionLoader(captions, seed, config.batch_size), folder, seed)


def _captions(path: str) -> list[str]:
    table = read_table(path, "download", ["caption", "status"])
    pairs = zip(table["caption"].to_pylist(), table["status"].to_pylist(), strict=True)
    return [caption for caption, status in pairs if status == "success" and caption]


def encoder_spec(artifact: Artifact) -> str:
    """What `TextEncoder.from_folder` loads the encoder from: a folder (maybe a URL) or a hub name."""
    model = storage.read_json(artifact.path(SPEC))["model"]
    return str(model) if model is not None else artifact.path(EXPORT)


# ---------------------------------------------------------------------------------------------- CLIP


def clip_sources(config: RunConfig) -> list[str]:
    """The local files of a CLIP that exists, checked; none for an open_clip pretrained tag or one trained here."""
    clip = config.clip
    if clip.model is None:
        return []
    check_spec(clip.model, clip.pretrained)
    return [path for name in (clip.model, clip.pretrained) if name and Path(name).exists() for path in _files(name)]


class PairWorker:
    """Packs every downloaded pair of a shard for CLIP's training."""

    def __init__(self, config: PackConfig, max_pixels: int) -> None:
        self.config, self.max_pixels = config, max_pixels

    def __call__(self, shard: Shard, out: Path) -> dict[str, int]:
        """One Parquet file."""
        tar, parquet = shard.files["download.tar"], shard.files["download.parquet"]
        path = out / f"{shard.id:05d}.parquet"
        return {"pairs": pack_shard(tar, parquet, None, path, self.config, self.max_pixels)["rows"]}


def clip(ctx: Context) -> None:
    """The CLIP that scores: loaded once as a check, or trained contrastively on all downloaded pairs."""
    config: ContrastiveConfig | None = ctx.config["clip.train"]
    if config is None:
        ClipScorer.load({"model": ctx.config["clip.model"], "pretrained": ctx.config["clip.pretrained"]})
    else:
        size = PackConfig(resolutions=(config.image_size,), raw_up_to=config.image_size)
        arguments = {"config": size, "max_pixels": ctx.config[STORED_PIXELS]}
        ctx.map_shards(PairWorker, arguments, ctx.shards("download"), subfolder=PAIRS)
        pairs = [ctx.path(PAIRS, f"{number:05d}.parquet") for number in sorted(marker.id for marker in ctx.finished)]
        tokenizer = encoder_spec(ctx.inputs["encoder"])
        fit(ctx, fit_clip, {"pairs": pairs, "tokenizer": tokenizer}, config)
        storage.remove(ctx.path(PAIRS))
    spec = {"model": ctx.config["clip.model"], "pretrained": ctx.config["clip.pretrained"]}
    storage.write_json(ctx.path(SPEC), {key: _known(name) for key, name in spec.items()})


def fit_clip(pairs: Sequence[str], tokenizer: str, config: ContrastiveConfig, folder: str, seed: int) -> dict[str, Any]:
    """Trains CLIP on this rank."""
    task = ClipTask(config, storage.local_folder(tokenizer))
    loader = Loader(pairs, None, task.columns, None, seed, config.batch_size)
    return train_loop(task, config, loader, folder, seed)


def clip_spec(artifact: Artifact) -> dict[str, str | None]:
    """What `ClipScorer.load` takes: an open_clip model with its weights, or the folder of the one trained here."""
    spec = storage.read_json(artifact.path(SPEC))
    return spec if spec["model"] is not None else {"model": artifact.path(EXPORT), "pretrained": None}


def clip_identity(artifact: Artifact) -> str:
    """A digest of the CLIP itself: two stages have the same one where the weights are the same, whatever their logs."""
    weights = {output.path: output.sha256 for output in artifact.manifest.outputs if output.path.startswith(EXPORT)}
    spec = storage.read_json(artifact.path(SPEC))
    return digest({"weights": weights, "spec": spec, "sources": sorted(artifact.manifest.sources.values())})[:16]


def device() -> str:
    """Where a worker's model goes: Ray shows an actor the GPUs that it asked for, and no others."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _known(name: str | None) -> str | None:
    """A name of a model as a worker elsewhere understands it: a local path made absolute, a hub name as it is."""
    return storage.absolute(name) if name is not None and Path(name).exists() else name


def _files(path: str) -> list[str]:
    """The file at ``path``, or every file below it."""
    if Path(path).is_file():
        return [path]
    found = [storage.join(path, name) for name in storage.list_files(path)]
    if not found:
        raise UserError(f"{path}: an empty folder; give one with a model in it")
    return found
