"""``imagen-ray export``: writes the cascade of a run to a folder that can be used without Ray and DeepSpeed.

OUT/cascade.json           the stages, their sampling settings, the encoder and CLIP
OUT/<stage>/               config.json and model.safetensors, of large networks shards and their index
OUT/<stage>_guide/         the same of a weaker network, where guidance goes away from one
OUT/encoder/, OUT/clip/    the frozen models if they are files; hub names are kept in cascade.json
OUT/README.md              the model card; metrics.json and datacard.md are copied from the run
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.outputs import check_output_folder
from dataprep.io.pipeline_folder import PIPELINE_FILE, encoder_folders
from dataprep.text.encoder import TextEncoder
from dataprep.text.learned_tokens import save_encoder_folder
from eval.sampling.adapters import ENCODER as MERGED_ENCODER
from eval.sampling.adapters import AdapterChoice, apply_adapters
from eval.sampling.config import CascadeConfig, StageEntry, read_cascade, resolve_paths, write_cascade
from eval.sampling.loading import load_prior, load_stages
from pipeline.inference.model_card import render_model_card
from pipeline.inference.sample import find_adapters, run_cascade
from pipeline.store.run import Run
from train.models.adapters.lora import is_adapter_tensor
from train.models.distilled import read_distilled
from train.models.export import load_stage, read_stage_settings, save_stage
from train.models.weight_files import DTYPES, MAX_SHARD_BYTES, load_tensors

CARD, ENCODER, CLIP = "README.md", "encoder", "clip"
WEIGHTS = ("ema", "raw")
NOTICES = ("LICENSE", "LICENSE.md", "LICENSE.txt")
COPIED_FILES = ("metrics.json", "datacard.md")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a cascade is exported.

    Attributes:
        weights: "ema" or "raw".
        dtype: that weights are stored in: float32, bfloat16 or float16; networks compute as the sampler says.
        shard_size: greatest size of a file of weights, such as 5GB.
        licence: of the weights, an identifier of the hub such as apache-2.0; None: none is stated.
        datasets: identifiers on the hub of the data that the model was trained on, for the card.
        watermark: text of an invisible watermark of all its images; None: that of the run.
        adapters: LoRA files to merge into the weights, see `find_adapters`.
    """

    weights: str = "ema"
    dtype: str = "float32"
    shard_size: str = "5GB"
    licence: str | None = None
    datasets: tuple[str, ...] = ()
    watermark: str | None = None
    adapters: tuple[str, ...] = ()


def export_run(folder: str, out: Path, options: ExportOptions) -> Path:
    """Writes the cascade of the finished run at ``folder`` to ``out``, completely or not at all; returns ``out``.

    Raises UserError if training is not finished, ``out`` exists, or an option is not one.
    """
    check_weights(options.weights)
    if options.dtype not in DTYPES:
        raise UserError(f"--dtype {options.dtype} is unknown; choose one of {', '.join(DTYPES)}")
    shard_bytes = parse_size(options.shard_size)
    check_new_folder(out)
    run = Run(folder)
    config = run_cascade(run)
    with new_folder(out) as temporary:
        _write_folder(run, config, temporary, options, shard_bytes)
        merged = merge_adapters(temporary, find_adapters(options.adapters), options.dtype, shard_bytes)
        card = render_model_card(
            run, read_cascade(temporary), temporary, options.weights, options.licence, options.datasets, merged
        )
        (temporary / CARD).write_text(card, encoding="utf-8")
    return out


def check_weights(weights: str) -> None:
    """Raises UserError for an unknown kind of weights."""
    if weights not in WEIGHTS:
        raise UserError(f"--weights {weights} is unknown; choose one of {', '.join(WEIGHTS)}")


def check_new_folder(out: Path) -> None:
    """Raises UserError where a folder cannot be created at ``out``."""
    if os.path.lexists(out):
        raise UserError(f"{out} exists; give the name of a new folder")
    check_output_folder(out, "OUT")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Gives a temporary folder, which becomes ``out`` at the end, or nothing if the body raises."""
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def parse_size(text: str) -> int:
    """Returns the bytes of a size such as 5GB or 500MB; raises UserError for another text."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    match = re.fullmatch(r"(\d+)\s*(KB|MB|GB)", text.strip().upper())
    if match is None or not int(match[1]):
        raise UserError(f"--shard-size {text}: is no size; give one such as 5GB or 500MB")
    return int(match[1]) * units[match[2]]


def _write_folder(run: Run, config: CascadeConfig, out: Path, options: ExportOptions, shard_bytes: int) -> None:
    artifacts = run.artifacts()

    def write(stage: StageEntry) -> StageEntry:
        model, settings = read_stage_settings(stage.path)
        if options.weights == "ema":
            tensors, step = load_tensors(Path(stage.path)), settings["trained_steps"]
        else:
            from train.resume import read_weights  # imports DeepSpeed

            raw, step = read_weights(artifacts[f"train.{stage.name}"].path("checkpoints"), options.weights)
            if any(is_adapter_tensor(name) for name in raw):
                raise UserError(
                    f"--weights {options.weights}: stage {stage.name} was trained as an adapter, whose raw weights are "
                    "not exported; leave --weights out, for its EMA"
                )
            tensors = load_tensors(Path(stage.path)) | raw  # the first has parts that are not trained, if any
        distilled = read_distilled(settings)
        save_stage(out / stage.name, tensors, model, settings["diffusion"], step, options.dtype, shard_bytes, distilled)
        load_stage(out / stage.name)  # checks that it can be sampled from
        guide = None if stage.guide is None else _copy_model(stage.guide, out, f"{stage.name}_guide")
        return stage.model_copy(update={"path": stage.name, "guide": guide})

    config = config.with_entries(write)
    changes: dict[str, object] = {"encoder": _copy_encoder(config.encoder, out)}
    changes["expand"] = None  # another's model, for which `sample --expand` is
    if config.clip is not None:
        changes["clip"] = _copy_model(config.clip, out, CLIP)
    if config.clip_pretrained is not None:
        changes["clip_pretrained"] = _copy_model(config.clip_pretrained, out, "clip_weights")
    if options.watermark is not None:
        changes["watermark"] = options.watermark
    write_cascade(out, config.model_copy(update=changes))
    for name in COPIED_FILES:
        if storage.exists(run.path(name)):
            (out / name).write_bytes(storage.read_bytes(run.path(name)))


def merge_adapters(
    folder: Path, choices: Sequence[AdapterChoice], dtype: str = "float32", shard_bytes: int = MAX_SHARD_BYTES
) -> list[AdapterChoice]:
    """Merges adapters into the stages and the text encoder of an exported cascade; returns them with their stages.

    An encoder that the cascade only names, on a hub, is then written into its folder.
    """
    if not choices:
        return []
    config = resolve_paths(read_cascade(folder), folder)
    prior = load_prior(config, "cpu")
    stages = [*([] if prior is None else [prior]), *load_stages(config, "cpu")]
    encoder = cache(lambda: TextEncoder.from_folder(config.encoder, "float32", lowercase=config.encoder_lowercase))
    merged = apply_adapters(choices, stages, encoder)
    changed = {choice.stage for choice in merged}
    if MERGED_ENCODER in changed:
        _replace_encoder(folder, encoder())
    for stage in stages:
        if stage.entry.name in changed:
            model, settings = read_stage_settings(stage.entry.path)
            diffusion, steps = settings["diffusion"], settings["trained_steps"]
            weights, distilled = stage.model.state_dict(), read_distilled(settings)
            save_stage(stage.entry.path, weights, model, diffusion, steps, dtype, shard_bytes, distilled)
    return merged


def _replace_encoder(folder: Path, encoder: TextEncoder) -> None:
    """Writes the text encoder of an exported cascade again."""
    shutil.rmtree(folder / ENCODER, ignore_errors=True)
    save_encoder_folder(encoder, folder / ENCODER)
    write_cascade(folder, read_cascade(folder).model_copy(update={"encoder": ENCODER}))


def copy_notices(source: str, folder: Path) -> None:
    """Copies the licence of the folder that the text encoder is from."""
    for name in NOTICES:
        if (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, folder / name)


def _copy_encoder(source: str, out: Path) -> str:
    """Copies the text encoder as `_copy_model` does; of a folder in diffusers' layout not the image networks."""
    parts = encoder_folders(source)
    if parts[0] == parts[1]:
        return _copy_model(source, out, ENCODER)
    for part in parts:
        _copy_model(part, out / ENCODER, Path(part).name)
    shutil.copyfile(Path(source) / PIPELINE_FILE, out / ENCODER / PIPELINE_FILE)  # says that it has two folders
    copy_notices(source, out / ENCODER)
    return ENCODER


def _copy_model(source: str, out: Path, name: str) -> str:
    """Copies a folder or file to ``out``/``name`` and returns that name; returns a hub name unchanged."""
    path = Path(source)
    if path.is_dir():
        shutil.copytree(path, out / name, ignore=shutil.ignore_patterns(".git"))
    elif path.is_file():
        name += path.suffix
        shutil.copyfile(path, out / name)
    else:
        return source
    return name
