"""``imagen-ray export`` of a model that is no run, or to diffusers' layout: its stages, converted.

With ``--layout diffusers``: OUT/<stage>/ for each stage, a pipeline folder that diffusers loads, with the text encoder.
With ``--layout imagen-ray``: cascade.json, OUT/<stage>/ and OUT/encoder/, as of a run, without its card and metrics.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_transformers
from dataprep.io.pipeline_folder import PIPELINE_FILE, encoder_folders
from dataprep.text.encoder import check_encoder, find_variant
from eval.sampling.config import CASCADE_FILE, CascadeConfig, write_cascade
from pipeline.inference.export import (
    ENCODER,
    ExportOptions,
    check_new_folder,
    check_weights,
    copy_notices,
    new_folder,
)
from pipeline.inference.sample import model_cascade
from pipeline.store.run import RUN_FILE
from train.models.backbones import write_folder_stage
from train.models.export import load_stage, save_stage

LAYOUTS = ("imagen-ray", "diffusers")
TEXT_PARTS = ("text_encoder", "tokenizer")
CARRIED_PARTS = ("safety_checker", "feature_extractor", "watermarker")  # of the folder that the text encoder is from


def is_run_export(model: str, then: Sequence[str], layout: str) -> bool:
    """Returns whether `export_run` serves: a run, to our layout. Raises UserError for an unknown layout."""
    if layout not in LAYOUTS:
        raise UserError(f"--layout {layout} is unknown; choose one of {', '.join(LAYOUTS)}")
    return layout == LAYOUTS[0] and not then and storage.exists(storage.join(model, RUN_FILE))


def check_stage_options(options: ExportOptions, layout: str) -> None:
    """Raises UserError for options of `export_run` that `export_stages` does not have."""
    check_weights(options.weights)
    default = ExportOptions()
    given = {
        f"--weights {options.weights}": options.weights != default.weights,
        "--dtype": options.dtype != default.dtype,
        "--shard-size": options.shard_size != default.shard_size,
        "--licence": options.licence is not None,
        "--dataset": bool(options.datasets),
        "--adapter": bool(options.adapters),
    }
    for option in (name for name, is_given in given.items() if is_given):
        raise UserError(f"{option}: only of a run with --layout imagen-ray; export that folder in a second step")
    if layout == "diffusers" and options.watermark is not None:
        raise UserError("--watermark: diffusers' layout has no place for it; leave it out")


def export_stages(model: str, then: Sequence[str], out: Path, layout: str, watermark: str | None = None) -> Path:
    """Writes the stages of MODEL, which `model_cascade` describes, to ``out``, completely or not at all.

    Raises UserError where ``out`` exists, or a stage cannot be loaded or has no such layout.
    """
    check_new_folder(out)
    if layout == LAYOUTS[0] and storage.exists(storage.join(model, CASCADE_FILE)):
        raise UserError(f"{model}: is exported in this layout already; copy it, or give --layout diffusers")
    config = model_cascade(model, then)
    with new_folder(out) as temporary:
        if layout == "diffusers":
            _write_pipelines(config, temporary)
        else:
            _write_cascade(config.model_copy(update={"watermark": watermark or config.watermark}), temporary)
    return out


def _write_cascade(config: CascadeConfig, out: Path) -> None:
    stages = []
    for entry in config.stages:
        network, settings = load_stage(entry.path)
        weights, steps = network.state_dict(), settings.get("trained_steps")
        save_stage(out / entry.name, weights, network.config, settings["diffusion"], steps)
        stages.append(entry.model_copy(update={"path": entry.name}))
    save_encoder(config.encoder, out / ENCODER, out / ENCODER)
    write_cascade(out, config.model_copy(update={"stages": stages, "encoder": ENCODER}))
    copy_notices(config.encoder, out)


def _write_pipelines(config: CascadeConfig, out: Path) -> None:
    for entry in config.stages:
        network, settings = load_stage(entry.path)
        folder = out / entry.name
        parts: dict[str, Any] = save_encoder(config.encoder, *(folder / name for name in TEXT_PARTS))
        parts |= _carry_parts(config.encoder, folder)
        sampling = entry.sampling.model_dump(mode="json") | {"threshold": entry.sampling.resolve_threshold()}
        write_folder_stage(str(folder), network, settings["diffusion"], sampling, parts)
        copy_notices(config.encoder, folder)


def save_encoder(source: str, weights: Path, tokenizer: Path) -> dict[str, list[str]]:
    """Writes a text encoder and its tokenizer to two folders, or to one; returns their classes as diffusers lists them.

    Its files are copied where both layouts agree, else it is loaded and saved.
    """
    check_encoder(source)
    transformers = import_transformers()
    model_folder, tokenizer_folder = encoder_folders(source)
    words = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    split = model_folder != tokenizer_folder and weights != tokenizer
    if split and Path(model_folder).is_dir() and find_variant(model_folder) is None:
        shutil.copytree(model_folder, weights)
        shutil.copytree(tokenizer_folder, tokenizer)
    else:
        variant = find_variant(model_folder)
        options = {"variant": variant} if variant else {}
        encoder = transformers.T5EncoderModel.from_pretrained(model_folder, dtype="auto", **options)
        encoder.save_pretrained(weights)
        words.save_pretrained(tokenizer)
    return {"text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", type(words).__name__]}


def _carry_parts(source: str, folder: Path) -> dict[str, Any]:
    """Copies the optional parts of a pipeline folder, such as its safety checker.

    Returns their entries of its index, and those of its text encoder and tokenizer.
    """
    index = Path(source) / PIPELINE_FILE
    listed = storage.read_json(str(index)) if index.is_file() else {}
    parts: dict[str, Any] = {name: [None, None] for name in CARRIED_PARTS}
    for name in CARRIED_PARTS:
        if (Path(source) / name).is_dir() and name in listed:
            shutil.copytree(Path(source) / name, folder / name)
            parts[name] = listed[name]
    parts |= {name: listed[name] for name in TEXT_PARTS if name in listed}
    return parts | {"requires_safety_checker": parts["safety_checker"] != [None, None]}
