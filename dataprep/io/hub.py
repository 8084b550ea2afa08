"""Models of the Hugging Face hub, named ``hf://owner/name``: the files that are needed, downloaded once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from dataprep.io.errors import UserError
from dataprep.io.pipeline_folder import PIPELINE_FILE

HUB_PREFIX = "hf://"
HALF = ".fp16"  # in the names of weights of half the bytes
WHOLE = re.compile(r"[^.]+\.safetensors(\.index\.json)?")  # names of weights that are no variant
SMALL = (".json", ".txt", ".model")  # endings of configs and vocabularies
CARD = "README.md"  # names the licence


@dataclass(frozen=True, kw_only=True)
class WantedFiles:
    """Which files of a model are downloaded.

    Attributes:
        folders: those whose configs and vocabularies are wanted; "" is the top.
        weights: those whose safetensors are wanted, of one variant. Those at the top are not where the model is a
            pipeline in diffusers' layout, whose weights are in its folders.
        half: prefer weights of 16 bits, half the download.
        needed: files, and folders of weights, without which it is no such model.
    """

    folders: tuple[str, ...]
    weights: tuple[str, ...]
    half: bool = False
    needed: tuple[str, ...] = ()


@cache
def download_model(path: str, wanted: WantedFiles) -> str:
    """Returns the local folder of ``hf://owner/name``; downloads what of it is not in the hub's cache.

    Without a network: as far as it was downloaded before. Raises UserError where there is no such model, a needed part
    is missing, or the hub cannot be reached.
    """
    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name = path.removeprefix(HUB_PREFIX)
    try:
        files = choose_files(name, HfApi().list_repo_files(name), wanted)
        return str(snapshot_download(name, allow_patterns=files))
    except UserError:
        raise
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        try:
            return str(snapshot_download(name, local_files_only=True))
        except (OSError, ValueError):
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path}: not found on the hub or not reachable ({reason}); check the name, or give a folder"
            ) from error


def choose_files(name: str, files: Iterable[str], wanted: WantedFiles) -> list[str]:
    """Returns the wanted among the files of the model ``name``; raises UserError where a needed part is missing."""
    every = sorted(files)
    weights = {folder: _choose_weights(every, folder, wanted.half) for folder in wanted.weights}
    for part in wanted.needed:
        if part in weights and not weights[part]:
            raise UserError(f"{name}: no safetensors weights in {part}; take another model")
        if part not in weights and part not in every:
            raise UserError(f"{name}: no {part}; name a model in diffusers' layout")
    if PIPELINE_FILE in every:
        weights.pop("", None)
    small = [file for file in every if _is_small(file, wanted.folders) or file in (CARD, PIPELINE_FILE)]
    return sorted({*small, *(file for chosen in weights.values() for file in chosen)})


def _choose_weights(files: list[str], folder: str, half: bool) -> list[str]:
    """Returns the safetensors of a folder and their index, of one variant; all of them where none is told apart."""
    every = [file for file in files if file.rpartition("/")[0] == folder and ".safetensors" in file]
    halves = [file for file in every if HALF in file]
    whole = [file for file in every if WHOLE.fullmatch(file.rpartition("/")[2])]
    return (halves or whole or every) if half else (whole or every)


def _is_small(file: str, folders: tuple[str, ...]) -> bool:
    folder, _, name = file.rpartition("/")
    return folder in folders and name.endswith(SMALL) and ".safetensors" not in name
