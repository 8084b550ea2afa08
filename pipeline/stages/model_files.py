"""Where the stages `encoder` and `clip` record which model they found or trained."""

from __future__ import annotations

from pathlib import Path

from dataprep.io import storage
from dataprep.io.errors import UserError

MODEL_FILE = "model.json"  # {"model": name or path} of an existing model, {"model": null} of one trained here
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
