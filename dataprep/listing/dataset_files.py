"""The files of one split of a Hugging Face dataset: what its folder says, or what their names show.

A folder that `datasets` saved says it in state.json and dataset_dict.json, a repository of the hub in the metadata of
its README.md. Elsewhere the hub goes by names: ``data/train-00000-of-00002.parquet``, then folders called train,
validation or test, then files called so; without any of these, everything is of the split train.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

import yaml

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.listing.account import Account
from dataprep.listing.config import SourceConfig
from dataprep.listing.files import expand_braces, list_folder

TRAIN = "train"
STATE, SPLITS, README = "state.json", "dataset_dict.json", "README.md"
KEYWORDS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
APART = r"[-._ 0-9]"  # what may stand before and after a keyword in a name
SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")


HUB_REMEDY = "check the name; a dataset that asks for consent needs yours, on its page, and your token in HF_TOKEN"


class SplitFiles(NamedTuple):
    """The files of a split, relative to the folder; ``splits`` are the names of all."""

    names: list[str]
    splits: list[str]


def find_split(config: SourceConfig, account: Account) -> SplitFiles:
    """Returns the files of the split that ``config`` asks for.

    Raises UserError for a folder, split or subset that is not there.
    """
    assert config.path is not None
    names = _list_names(config, account)
    if config.subset is None and (saved := _read_saved(config.path, names)):
        return _take(config, saved)
    if described := _read_described(config, names):
        return _take(config, described)
    if config.subset is not None:
        raise UserError(
            f"listing.subset {config.subset}: {config.path} has no {README} that describes it; leave it out, and name "
            "the files by a pattern with source: table"
        )
    return _take(config, _group_by_name(names))


def _list_names(config: SourceConfig, account: Account) -> list[str]:
    assert config.path is not None
    fs, inner = storage.filesystem(config.path)
    if not fs.isdir(inner):
        hint = HUB_REMEDY if config.path.startswith(storage.HUB) else "check the path"
        raise UserError(f"listing.path {config.path}: no such dataset folder; {hint}")
    found = list_folder(config.path, account, config.hidden_files)
    if broken := next((item for item in found if item.problem), None):
        raise UserError(f"listing.path {storage.join(config.path, broken.name)}: {broken.problem}; repair or remove it")
    return [item.name for item in found]


def _take(config: SourceConfig, splits: dict[str, list[str]]) -> SplitFiles:
    wanted = config.split or (TRAIN if TRAIN in splits or len(splits) != 1 else next(iter(splits)))
    if not splits.get(wanted):
        raise UserError(
            f"listing.split {wanted}: {config.path} has no files of it, only of {', '.join(sorted(splits)) or 'none'}; "
            "set split to one of these"
        )
    return SplitFiles(splits[wanted], sorted(splits))


def _read_saved(path: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the files by split of a folder that `save_to_disk` wrote, in their order; none for another folder."""
    if SPLITS in names:
        folders = [str(name) for name in storage.read_json(storage.join(path, SPLITS))["splits"]]
        return {name: _read_state(path, f"{name}/") for name in folders}
    return {TRAIN: _read_state(path, "")} if STATE in names else {}


def _read_state(path: str, folder: str) -> list[str]:
    state = storage.join(path, folder + STATE)
    try:
        return [folder + str(item["filename"]) for item in storage.read_json(state)["_data_files"]]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"listing.path {state}: not readable ({error}); save the dataset again") from error


def _read_described(config: SourceConfig, names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the files by split of the subset, as README.md describes them; none if it describes no files."""
    assert config.path is not None
    if README not in names:
        return {}
    try:
        text = storage.read_bytes(storage.join(config.path, README)).decode(errors="replace")
    except OSError as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(f"listing.path {config.path}: {README} is not readable ({why}); {HUB_REMEDY}") from error
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        metadata = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError as error:
        raise UserError(f"listing.path {config.path}: the metadata of {README} is not YAML; repair it") from error
    subsets = metadata.get("configs") if isinstance(metadata, dict) else None
    described = [item for item in subsets or [] if isinstance(item, dict) and item.get("data_files")]
    if not described:
        return {}
    by_name = {str(item.get("config_name")): item for item in described}
    default = next((name for name, item in by_name.items() if item.get("default")), None)
    wanted = (
        config.subset or default or ("default" if "default" in by_name or len(by_name) > 1 else next(iter(by_name)))
    )
    if wanted not in by_name:
        raise UserError(
            f"listing.subset {wanted}: {config.path} has no such configuration, only {', '.join(by_name)}; "
            "set subset to one of these"
        )
    item = by_name[wanted]
    return _expand(item["data_files"], str(item.get("data_dir") or ""), names)


def _expand(data_files: Any, folder: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the files by split that ``data_files`` of a README stands for: patterns, alone or by split."""
    items = data_files if isinstance(data_files, list) else [data_files]
    splits: dict[str, list[str]] = {}
    for item in items:
        split, patterns = (str(item["split"]), item["path"]) if isinstance(item, dict) else (TRAIN, item)
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            whole = posixpath.normpath(posixpath.join(folder, str(pattern)))
            parts = expand_braces(whole)
            # * crosses folders in fnmatch, as ** does on the hub.
            found = [name for name in names if any(_matches(name, part) for part in parts)]
            splits.setdefault(split, []).extend(name for name in found if name != README)
    return {split: list(dict.fromkeys(found)) for split, found in splits.items()}


def _matches(name: str, pattern: str) -> bool:
    if name == pattern:
        return True
    if "**" not in pattern and name.count("/") != pattern.count("/"):
        return False
    return fnmatch(name, pattern) or fnmatch(name, pattern.replace("**/", ""))


def _group_by_name(names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the files by split, as their names show it."""
    sharded: dict[str, list[str]] = {}
    for name in names:
        if match := SHARD.fullmatch(name):
            sharded.setdefault(match[1], []).append(name)
    if sharded:
        return sharded
    for of_folders in (True, False):
        found: dict[str, list[str]] = {}
        for name in names:
            folder, _, base = name.rpartition("/")
            parts = folder.split("/") if of_folders else [base]
            for split, keywords in KEYWORDS.items():
                if any(_has_keyword(part, keywords) for part in parts if part):
                    found.setdefault(split, []).append(name)
        if found:
            return found
    rest = [name for name in names if name != README]
    return {TRAIN: rest} if rest else {}


def _has_keyword(name: str, keywords: Sequence[str]) -> bool:
    return any(re.search(rf"(^|{APART}){word}($|{APART})", name) for word in keywords)
