"""The tokenizer in a text encoder's folder. Light: torch is not loaded, transformers is where it has to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataprep.io.errors import UserError
from dataprep.io.pipeline_folder import encoder_folders


def load_tokenizer(path_or_name: str) -> Any:
    """Returns the tokenizer of a folder (diffusers' layout too) or hub name; raises UserError where there is none."""
    from dataprep.io.model_imports import import_transformers

    try:
        return import_transformers(models=False).AutoTokenizer.from_pretrained(encoder_folders(path_or_name)[1])
    except (OSError, ValueError) as error:
        raise UserError(f"clip.train: no tokenizer in {path_or_name!r}; give the text encoder's folder") from error


def check_tokenizer(folder: str) -> None:
    """Raises UserError for a local folder whose tokenizer cannot be read; mostly without loading transformers."""
    file = Path(encoder_folders(folder)[1]) / "tokenizer.json"
    if not file.is_file():
        load_tokenizer(folder)  # of one of the older formats
        return
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"encoder {folder!r}: its tokenizer.json cannot be read ({error}); save it again") from error
