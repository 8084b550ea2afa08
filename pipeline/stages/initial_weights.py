"""What ``init:`` of a training names: a stage of a run or of an export is looked up, other sources stay as they are.

Weights of a run are those of its finished stage. The stage that begins from them records it in `ORIGIN_FILE`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.hub import HUB_PREFIX
from dataprep.io.markdown import read_front_matter
from eval.sampling.config import CASCADE_FILE
from pipeline.stages.model_files import EXPORT, MODEL_FILE
from pipeline.store.artifact import Artifact
from pipeline.store.run import RUN_FILE, Run
from train.init_config import InitConfig
from train.initial_weights.fitting import ModelTensor, check_fit, compare_tensors
from train.initial_weights.registry import find_weight_source

ORIGIN_FILE = "origin.json"  # an `Origin`
CHECKPOINTS = "checkpoints"
# RUN:STAGE@FINGERPRINT, of which the last two may be left out; a URL's :// is no stage.
REFERENCE = re.compile(r"(?P<root>.+?)(?::(?P<stage>[a-z][a-z0-9_.]*))?(?:@(?P<fingerprint>[0-9a-f]{4,20}))?")


@dataclass(frozen=True)
class Origin:
    """Where a training's first weights came from."""

    source: str  # as in the config
    path: str  # where they are
    weights: str  # ema or raw
    licence: str | None
    run: str | None = None
    stage: str | None = None
    fingerprint: str | None = None
    model: str | None = None  # folder with the tokenizer or settings that go with the weights, if it is another


def find_origin(init: InitConfig, stage: str, key: str) -> Origin:
    """Returns where the weights for ``stage`` are; ``key`` is the config's, for messages.

    Raises UserError where there is no such run, stage or file.
    """
    if init.source.startswith(HUB_PREFIX):
        return Origin(init.source, init.source, init.weights, init.licence)
    match = REFERENCE.fullmatch(init.source)
    assert match is not None
    root, wanted, fingerprint = match["root"], match["stage"], match["fingerprint"]
    if storage.exists(storage.join(root, RUN_FILE)):
        return _find_in_run(init, Run(root), _full_name(wanted, stage), fingerprint, key)
    if storage.exists(storage.join(root, CASCADE_FILE)) and fingerprint is None:
        return _find_in_export(init, root, _full_name(wanted, stage), key)
    if not storage.exists(init.source):
        raise UserError(
            f"{key}={init.source}: nothing is there; make that model first (a run: `imagen-ray run` its config), or "
            "name a run, an export, a checkpoint, a safetensors file, or hf://owner/name"
        )
    path = storage.absolute(init.source)
    return Origin(init.source, path, init.weights, init.licence or _read_licence(path))


def _full_name(wanted: str | None, stage: str) -> str:
    """Returns the stage that ``wanted`` names, in the kind of ``stage``: base stands for train.base."""
    if wanted is None:
        return stage
    return wanted if "." in wanted or not stage.startswith("train.") else f"train.{wanted}"


def _find_in_run(init: InitConfig, run: Run, stage: str, fingerprint: str | None, key: str) -> Origin:
    artifact = _find_artifact(run, stage, fingerprint)
    if artifact is None:
        finished = ", ".join(
            name for name in run.artifacts() if name == "clip" or name.startswith(("train.", "encoder"))
        )
        which = f"{stage}@{fingerprint}" if fingerprint else stage
        raise UserError(
            f"{key}={init.source}: stage {which} is not finished there (finished: {finished or 'none'}); run it first, "
            "or name another with RUN:STAGE"
        )
    path, model = _locate_weights(artifact, init.weights, key)
    licence = init.licence or _read_licence(path)
    return Origin(init.source, path, init.weights, licence, run.root, stage, artifact.manifest.fingerprint, model=model)


def _find_artifact(run: Run, stage: str, fingerprint: str | None) -> Artifact | None:
    if fingerprint is None:
        return run.artifacts().get(stage)
    names = [folder.rsplit("/", 1)[-1] for folder in run.stage_folders(stage)]
    found = [artifact for name in names if name.startswith(fingerprint) and (artifact := run.artifact(stage, name))]
    return found[0] if len(found) == 1 else None


def _locate_weights(artifact: Artifact, weights: str, key: str) -> tuple[str, str | None]:
    """Returns where a finished stage's weights are, and the folder of its whole model if that is another."""
    if artifact.has(MODEL_FILE) and (name := artifact.read_json(MODEL_FILE)["model"]) is not None:
        if not storage.exists(str(name)):
            raise UserError(f"{key}: that run only loaded {name}; name a model that was trained, or a local folder")
        return str(name), None
    # The encoder's export has no decoder, which its training needs.
    if artifact.manifest.stage == "encoder" or weights == "raw":
        return artifact.path(CHECKPOINTS), artifact.path(EXPORT)
    return artifact.path(EXPORT), None


def _find_in_export(init: InitConfig, root: str, stage: str, key: str) -> Origin:
    content = storage.read_json(storage.join(root, CASCADE_FILE))
    members = [*content["stages"], *([content["prior"]] if content.get("prior") else [])]
    folders = {f"train.{entry['name']}": entry["path"] for entry in members}
    folders |= {name: content[name] for name in ("encoder", "clip") if content.get(name)}
    if stage not in folders:
        raise UserError(
            f"{key}={init.source}: has no stage {stage}; it has {', '.join(folders)}: name one after a colon"
        )
    path = storage.absolute(storage.join(root, folders[stage]))
    if init.weights == "raw":
        raise UserError(f"{key}.weights=raw: an export has one kind of weights; leave it out, or name the run")
    return Origin(init.source, path, init.weights, init.licence or _read_licence(root), stage=stage)


def _read_licence(path: str) -> str | None:
    """Returns the licence that a model card beside the weights names."""
    folder = path.rpartition("/")[0] if path.endswith(".safetensors") else path
    card = storage.read_or_none(storage.join(folder, "README.md"))
    licence = read_front_matter(card.decode(errors="replace")).get("license") if card else None
    return str(licence) if licence else None


def list_origin_files(origin: Origin) -> list[str]:
    """Returns the files whose bytes a training that begins there depends on."""
    source = find_weight_source(origin.path)
    files = source.list_files(origin.path)
    if origin.model is not None:
        files += [
            storage.join(origin.model, name) for name in storage.list_files(origin.model) if name.endswith(".json")
        ]
    return files


def check_origin(origin: Origin, init: InitConfig, model: Sequence[ModelTensor], key: str) -> None:
    """Raises UserError where the weights do not fit the tensors of ``model``, as `check_fit`."""
    shapes = find_weight_source(origin.path).shapes(origin.path, origin.weights)
    check_fit(compare_tensors(model, shapes), init, key)


def place_init(init: InitConfig, origin: Origin) -> InitConfig:
    """Returns ``init`` with the place that `find_origin` found, as the ranks understand it."""
    return init.model_copy(update={"source": origin.path})


def write_origin(path: str, origin: Origin) -> None:
    """Records where a stage began."""
    storage.write_json(path, asdict(origin))


def read_origin(artifact: Artifact) -> dict[str, Any] | None:
    """Returns what `write_origin` wrote; None for a stage that began from random weights."""
    return dict(artifact.read_json(ORIGIN_FILE)) if artifact.has(ORIGIN_FILE) else None


def describe_origin(origin: Mapping[str, Any]) -> str:
    """Returns a line about an origin, for a person."""
    place = origin["source"] if origin["stage"] is None else f"{origin['source']}, {origin['stage']}"
    found = f" ({origin['fingerprint']})" if origin["fingerprint"] else ""
    return f"{place}{found}, {origin['weights']} weights, licence {origin['licence'] or 'not stated'}"
