"""Stages in diffusers' layout on the Hugging Face hub, named ``hf://owner/name``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from dataprep.io.errors import UserError
from train.models.diffusers_unet.folder_config import INDEX_FILE, NOISING, SCHEDULER, UNET

HUB_PREFIX = "hf://"
PARTS = (UNET, SCHEDULER, NOISING, "text_encoder", "tokenizer")
WEIGHT_PARTS = (UNET, "text_encoder")
VARIANT = "fp16"  # half the download; networks compute in float32 or bfloat16 all the same


def download_folder(path: str) -> str | None:
    """Downloads the parts that are needed of ``hf://owner/name``, or finds them in the hub's cache; returns the folder.

    Returns None for a path of another kind.
    Raises UserError where there is no such model, it is no stage in diffusers' layout, or the hub cannot be reached.
    """
    if not path.startswith(HUB_PREFIX):
        return None
    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name = path.removeprefix(HUB_PREFIX)
    try:
        files = choose_files(name, HfApi().list_repo_files(name))
        return str(snapshot_download(name, allow_patterns=files))
    except UserError:
        raise
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        try:  # without a network: as far as it was downloaded before
            return str(snapshot_download(name, local_files_only=True))
        except (OSError, ValueError):
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path}: not found on the hub or not reachable ({reason}); check the name, or give a folder"
            ) from error


def choose_files(name: str, files: Iterable[str]) -> list[str]:
    """Returns the files of a stage to download: its configs and tokenizer, and safetensors weights of one variant."""
    every = sorted(files)
    if INDEX_FILE not in every:
        raise UserError(f"{name}: no {INDEX_FILE}; name a model in diffusers' layout")
    chosen = [file for file in every if file == INDEX_FILE or _is_text(file)]
    for part in WEIGHT_PARTS:
        weights = [file for file in every if file.startswith(f"{part}/") and ".safetensors" in file]
        half = [file for file in weights if f".{VARIANT}" in file]
        if not weights and part == UNET:
            raise UserError(f"{name}: no safetensors weights in {UNET}; take another model")
        chosen += half or weights
    return sorted(set(chosen))


def _is_text(file: str) -> bool:
    """Returns whether a file is a small one of a needed part, such as a config or a vocabulary."""
    path = PurePosixPath(file)
    if path.parts[0] not in PARTS or len(path.parts) != 2 or "safetensors" in path.name:
        return False
    return path.suffix in (".json", ".txt", ".model")
