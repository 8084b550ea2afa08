"""Reads a config: YAML, ``key=value`` overrides, validation, and one-line messages for what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dataprep.io.errors import UserError
from dataprep.io.inputs import read_input
from dataprep.io.plain_text import check_text
from dataprep.io.yaml_text import parse_yaml
from pipeline.config import RunConfig, run_config_type

NULLS = ("", "~", "null", "Null", "NULL")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the validated config of the YAML file at ``path`` (a local path or fsspec URL).

    Args:
        path: the file.
        overrides: ``key.path=value`` each; the values replace those of the file. They are YAML, but for a key that
            takes a text, where only quotes and null have a meaning: ``card.title=#1 set``.

    Raises:
        UserError: the file is missing or not a YAML mapping, or the first invalid key, with its value and the remedy.
    """
    path = check_text(str(path), "CONFIG")
    tree = parse_yaml(read_input(path, "CONFIG", "give the path of a YAML config such as configs/demo.yaml"), path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of sections, this is {type(tree).__name__}")
    for override in overrides:
        key, equals, value = check_text(override, "override").partition("=")
        if not equals or not key:
            raise UserError(f"{override!r}: an override is key=value, such as clip.min_similarity=0.3")
        _set_value(tree, key, _parse_override(key, value, override))
    return validate_config(tree)


def _parse_override(key: str, text: str, override: str) -> Any:
    """Returns the value of an override: for a key that takes a text the text itself, without quotes; else YAML."""
    text, annotation = text.strip(), _find_annotation(key.split("."))
    if not _takes_text(annotation):
        value = parse_yaml(text, override)
        if value is None and text not in NULLS:
            raise UserError(f"{override}: # begins a comment in YAML, so there is no value; quote it")
        return value
    if text in NULLS and (text == "" or type(None) in get_args(annotation)):
        return None
    if text[0] in "'\"":
        try:
            quoted = parse_yaml(text, override)
        except UserError:  # a text with quotes in it
            return text
        return quoted if isinstance(quoted, str) else text
    return text


def _takes_text(annotation: Any) -> bool:
    """Returns whether a key of this type takes nothing but a text, or null."""
    if get_origin(annotation) is Literal:
        return all(isinstance(choice, str) for choice in get_args(annotation))
    if get_origin(annotation) is UnionType:
        return all(member is type(None) or _takes_text(member) for member in get_args(annotation))
    return annotation is str


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
        if _read_words(tree, error.errors()):
            return validate_config(tree)
        problems = [_describe_problem(problem) for problem in error.errors()]
        more = f" (and {len(problems) - 1} more: {'; '.join(problems[1:4])})" if len(problems) > 1 else ""
        raise UserError(problems[0] + more) from error


def _read_words(tree: dict[str, Any], problems: Sequence[Any]) -> bool:
    """Replaces yes, no, on and off by booleans where keys take these; returns whether there are any.

    Elsewhere they are texts: a language is ``no``.
    """
    words = {"yes": True, "on": True, "no": False, "off": False}
    found = [problem for problem in problems if _takes_booleans(problem) and problem["input"] in words]
    for problem in found:
        _set_value(tree, ".".join(problem["loc"]), words[problem["input"]])
    return bool(found)


def _takes_booleans(problem: Any) -> bool:
    """Returns whether the key of a problem takes true and false, alone or beside other choices."""
    if problem["type"] == "literal_error":
        return "True" in problem["ctx"]["expected"]
    return bool(problem["type"] == "bool_type")


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


def _find_annotation(where: Sequence[str]) -> Any:
    """Returns the type of the key at the path ``where``; None for an unknown one, and for one with keys below it."""
    *parents, key = where
    found = (section.model_fields[key].annotation for section in _find_sections(parents) if key in section.model_fields)
    return next(found, None)


def _valid_keys(where: Sequence[str]) -> Iterator[str]:
    """Yields the keys of the section at the path ``where``; for a dict with free keys, those of its values."""
    yield from dict.fromkeys(key for section in _find_sections(where) for key in section.model_fields)


def _find_sections(where: Sequence[str]) -> list[type[BaseModel]]:
    """Returns the config classes of the section at the path ``where``: several where another key chooses the class."""
    sections: list[type[BaseModel]] = [run_config_type()]
    for part in where:
        found = [section.model_fields[part] for section in sections if part in section.model_fields]
        if found:  # else a free key of a dict, whose values the sections are
            sections = list(dict.fromkeys(inner for field in found for inner in _list_classes(field.annotation)))
    return sections


def _list_classes(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields the config classes within an annotation: itself, of ``X | None``, or of ``dict[str, X]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _list_classes(argument)
