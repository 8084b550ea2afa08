"""``imagen-ray export``: the cascade of a run as a folder of its own, which neither Ray nor DeepSpeed is needed to use.

OUT/cascade.json           the stages, how they are sampled, the encoder and CLIP
OUT/<stage>/               config.json and model.safetensors
OUT/encoder/, OUT/clip/    the frozen models, where they are files; a hub's name stays a name in cascade.json
OUT/README.md              the model card; metrics.json and datacard.md as the run has them
"""

from __future__ import annotations

import shutil
from pathlib import Path

from dataprep import storage
from dataprep.schema import UserError
from eval.settings import CascadeConfig, write_cascade
from pipeline.model_card import card
from pipeline.sampling import run_cascade
from pipeline.store import Run
from train.models.export import CONFIG_FILE, load_stage, save_stage
from train.models.unet import UNetConfig

CARD, ENCODER, CLIP = "README.md", "encoder", "clip"
WEIGHTS = ("ema", "raw")
BESIDE = ("metrics.json", "datacard.md")


def export_run(
    folder: str, out: Path, weights: str = "ema", licence: str | None = None, watermark: str | None = None
) -> Path:
    """Writes the cascade of the finished run at ``folder`` to ``out``, whole or not at all; returns ``out``.

    ``weights`` is ema or raw. Raises UserError where the run is not trained to its end or ``out`` is there already.
    """
    if weights not in WEIGHTS:
        raise UserError(f"--weights {weights} is unknown; take one of {', '.join(WEIGHTS)}")
    if out.exists():
        raise UserError(f"{out}: is there already; name a folder that is not")
    run = Run(folder)
    config = run_cascade(run)
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        written = _write(run, config, temporary, weights, watermark)
        (temporary / CARD).write_text(card(run, written, temporary, weights, licence), encoding="utf-8")
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _write(run: Run, config: CascadeConfig, out: Path, weights: str, watermark: str | None) -> CascadeConfig:
    artifacts, stages = run.artifacts(), []
    for stage in config.stages:
        if weights == "ema":
            shutil.copytree(stage.path, out / stage.name)
        else:
            from train.weights import read_weights  # brings DeepSpeed with it

            settings = storage.read_json(str(Path(stage.path) / CONFIG_FILE))
            tensors, step = read_weights(artifacts[f"train.{stage.name}"].path("checkpoints"), weights)
            save_stage(out / stage.name, tensors, UNetConfig(**settings["unet"]), settings["diffusion"], step)
        load_stage(out / stage.name)  # refuses what cannot be sampled from
        stages.append(stage.model_copy(update={"path": stage.name}))
    changes: dict[str, object] = {"stages": stages, "encoder": _copied(config.encoder, out, ENCODER)}
    if config.clip is not None:
        changes["clip"] = _copied(config.clip, out, CLIP)
    if config.clip_pretrained is not None:
        changes["clip_pretrained"] = _copied(config.clip_pretrained, out, "clip_weights")
    if watermark is not None:
        changes["watermark"] = watermark
    written = config.model_copy(update=changes)
    write_cascade(out, written)
    for name in BESIDE:
        if storage.exists(run.path(name)):
            (out / name).write_bytes(storage.read_bytes(run.path(name)))
    return written


def _copied(source: str, out: Path, name: str) -> str:
    """Copies a folder or a file to ``out``/``name`` and gives that name; a hub's name is given back as it is."""
    path = Path(source)
    if path.is_dir():
        shutil.copytree(path, out / name)
    elif path.is_file():
        name += path.suffix
        shutil.copyfile(path, out / name)
    else:
        return source
    return name
