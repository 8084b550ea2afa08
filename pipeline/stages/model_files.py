"""Where the stages `encoder` and `clip` record which model they found or trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dataprep.io import storage
from dataprep.io.errors import UserError
from eval.sampling.config import CASCADE_FILE
from pipeline.store.artifact import Artifact
from pipeline.store.run import RUN_FILE, Run

MODEL_FILE = "model.json"  # {"model": name or path} of an existing model, {"model": null} of one trained here
TUNED = "text_tuning"  # stage whose encoder takes the place of the stage `encoder`'s
EXPORT = "export"  # folder of the model that was trained here


def resolve_model_name(name: str | None) -> str | None:
    """Returns a model's name as workers elsewhere understand it: a local path made absolute, a hub name as it is."""
    return storage.absolute(name) if name is not None and Path(name).exists() else name


def list_model_files(path: str) -> list[str]:
    """Returns the file at ``path``, or every file below it; raises UserError for an empty folder."""
    if Path(path).is_file():
        return [path]
    found = [storage.join(path, name) for name in storage.list_files(path)]
    if not found:
        raise UserError(f"{path}: an empty folder; give one with a model in it")
    return found


def find_encoder(artifacts: Mapping[str, Artifact]) -> Artifact | None:
    """Returns the artifact of the encoder that image models read: the tuned one where there is one."""
    return artifacts.get(TUNED) or artifacts.get("encoder")


def locate_model(name: str, part: str, key: str) -> str:
    """Returns the folder or name of a model; ``part`` (encoder or clip) of a run or an export if ``name`` is one.

    Raises UserError, naming ``key`` of the config, where that run or export has no such part.
    """
    if storage.exists(storage.join(name, RUN_FILE)):
        artifacts = Run(name).artifacts()
        artifact = find_encoder(artifacts) if part == "encoder" else artifacts.get(part)
        if artifact is None:
            raise UserError(f"{key}={name}: stage {part} is not finished in that run; run it first")
        spec = artifact.read_json(MODEL_FILE)
        if spec.get("pretrained") is not None:
            raise UserError(f"{key}={name}: that run's {part} is {spec['model']}; name it, and its pretrained weights")
        return artifact.path(EXPORT) if spec["model"] is None else str(spec["model"])
    if storage.exists(storage.join(name, CASCADE_FILE)):
        found = storage.read_json(storage.join(name, CASCADE_FILE)).get(part)
        if not found:
            raise UserError(f"{key}={name}: that export has no {part}; name another one")
        inside = storage.join(name, found)
        return inside if storage.exists(inside) else str(found)
    return name
