"""Reads a config: YAML, ``key=value`` overrides, validation, and one-line messages for what is wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.config import RunConfig, run_config_type

MERGE_TAG = "tag:yaml.org,2002:merge"
FLOAT_TAG, INTEGER_TAG = "tag:yaml.org,2002:float", "tag:yaml.org,2002:int"


class _YamlLoader(yaml.SafeLoader):
    """YAML with the floats (1e-3 is one) and integers (4:3 is none) of YAML 1.2, and without duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []  # keys need not be hashable here: the base class refuses those
        for key_node, _ in node.value:
            if key_node.tag == MERGE_TAG:
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise UserError(f"{key}: given twice (line {key_node.start_mark.line + 1}); keep one")
            seen.append(key)
        return super().construct_mapping(node, deep)


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != INTEGER_TAG]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_YamlLoader.add_implicit_resolver(
    INTEGER_TAG, re.compile(r"^(0|[-+]?[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"), list("-+0123456789")
)
_YamlLoader.add_implicit_resolver(
    FLOAT_TAG, re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str | bytes, name: str) -> Any:
    """Returns the value of a YAML text; raises UserError with ``name`` and the line if it is not valid YAML."""
    try:
        return yaml.load(text, Loader=_YamlLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{name}{line}: not valid YAML ({getattr(error, 'problem', None) or error})") from error


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the validated config of the YAML file at ``path`` (a local path or fsspec URL).

    Args:
        path: the file.
        overrides: ``key.path=value`` each; the values are YAML and replace those of the file.

    Raises:
        UserError: the file is missing or not a YAML mapping, or the first invalid key, with its value and the remedy.
    """
    path = str(path)
    if not storage.exists(path):
        raise UserError(f"CONFIG={path}: no such file; give the path of a YAML config such as configs/demo.yaml")
    fs, inner = storage.filesystem(path)
    if fs.isdir(inner):
        raise UserError(
            f"CONFIG={path}: a folder; give the YAML file in it, such as {storage.join(path, 'config.yaml')}"
        )
    tree = parse_yaml(storage.read_bytes(path), path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of sections, this is {type(tree).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError(f"{override!r}: an override is key=value, such as clip.min_similarity=0.3")
        _set_value(tree, key, parse_yaml(value, override))
    return validate_config(tree)


def _set_value(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        below = tree.setdefault(parent, {})
        if below is None:
            below = tree[parent] = {}
        if not isinstance(below, dict):
            raise UserError(f"{key}: {parent} is the value {below!r}, it has no keys below it")
        tree = below
    tree[last] = value


def validate_config(tree: dict[str, Any]) -> RunConfig:
    """Returns the typed config of a plain tree; raises the first problems as a one-line UserError."""
    try:
        return run_config_type().model_validate(tree)
    except ValidationError as error:
        problems = [_describe_problem(problem) for problem in error.errors()]
        more = f" (and {len(problems) - 1} more: {'; '.join(problems[1:4])})" if len(problems) > 1 else ""
        raise UserError(problems[0] + more) from error


def _describe_problem(problem: Any) -> str:
    where = [str(part) for part in problem["loc"]]
    key, value = ".".join(where), problem["input"]
    if problem["type"] == "extra_forbidden":
        names = list(_valid_keys(where[:-1]))
        near = difflib.get_close_matches(where[-1], names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(sorted(names))}"
        return f"{key}={_shorten(value)}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{key}: missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if key and not isinstance(value, dict):
        return f"{key}={_shorten(value)}: {message}"
    return f"{key}: {message}".lstrip(": ")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _valid_keys(where: Sequence[str]) -> Iterator[str]:
    """Yields the keys of the section at the path ``where``; for a dict with free keys, those of its values."""
    node: Any = run_config_type()
    for part in where:
        if isinstance(node, type) and issubclass(node, BaseModel) and part in node.model_fields:
            node = _find_section(node.model_fields[part].annotation)
    if isinstance(node, type) and issubclass(node, BaseModel):
        yield from node.model_fields


def _find_section(annotation: Any) -> Any:
    """Returns the config class within an annotation: itself, of ``X | None``, or of ``dict[str, X]``."""
    candidates = [annotation, *get_args(annotation)]
    inner = [argument for candidate in candidates for argument in get_args(candidate)]
    for found in [*candidates, *inner]:
        if isinstance(found, type) and issubclass(found, BaseModel):
            return found
    return annotation
