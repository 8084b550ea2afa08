"""What a folder says of the model in it, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_transformers

REMEDY = "give the folder of an image-text-to-text model of transformers, with its processor"


def check_model_folder(folder: str) -> None:
    """Raises UserError for a folder that is not of a model that describes images."""
    path = Path(folder) / "config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"caption.model={folder}: no readable config.json in it; {REMEDY}") from error
    auto = import_transformers(models=False).models.auto.modeling_auto
    if kind not in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(f"caption.model={folder}: a model of type {kind} does not describe images; {REMEDY}")
