"""A user's file of prompts: text with one per line, or a table of an evaluation protocol."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataprep.io.errors import UserError
from dataprep.io.inputs import read_input
from dataprep.io.plain_text import split_lines
from dataprep.io.wording import count_of
from dataprep.synthetic.grammar import parse_caption
from eval.sampling.prompts import EvalPrompt, clean_prompt

MAX_CHARACTERS = 1000  # of a prompt
PROMPT_NAMES, CATEGORY_NAMES = ("prompt", "prompts", "caption", "text"), ("category", "split", "challenge")
IMAGE_NAMES = ("file_name", "file", "filename", "image", "item_id")  # columns that name the image of a prompt
TABLES = ("csv", "tsv", "jsonl", "json")
COMMENT = re.compile(r"#+(\s|$)")  # "# a note" is a comment, "#1 dad mug" a prompt

Row = tuple[str, str, str, str]  # where it is, prompt, category or "", name of its image or ""


@dataclass(frozen=True)
class PromptFile:
    """The distinct prompts of a file in its order, and how many lines or rows were left out, by reason."""

    prompts: list[EvalPrompt]
    left_out: dict[str, int]

    def describe(self) -> str:
        """Returns the counts in words, such as ``3 prompts; left out: 1 as comment, 2 as repeated``."""
        reasons = ", ".join(f"{count:,} as {reason}" for reason, count in self.left_out.items())
        return count_of(len(self.prompts), "prompt") + (f"; left out: {reasons}" if reasons else "")


def read_prompt_file(path: str) -> PromptFile:
    """Reads the prompts of a UTF-8 file at any fsspec URL, each once.

    Formats by extension: ``.csv``, ``.tsv`` or ``.jsonl`` with a column of `PROMPT_NAMES` and optionally one of
    `CATEGORY_NAMES` (DrawBench), which becomes the split, otherwise "user"; ``.json`` as COCO's captions
    ({"annotations": [{"caption": ...}]}); anything else is text with one prompt per line, where `COMMENT` lines and
    empty ones are skipped. Raises UserError for a file of another form, one without a prompt, and a prompt that is no
    text or has more than `MAX_CHARACTERS`.
    """
    kept: dict[str, EvalPrompt] = {}
    left_out: Counter[str] = Counter()
    for prompt, reason, _ in _read_every_prompt(path):
        if prompt is not None and prompt.prompt in kept:
            left_out["repeated"] += 1
        elif prompt is not None:
            kept[prompt.prompt] = prompt
        else:
            left_out[reason] += 1
    if not kept:
        raise UserError(f"prompts {path}: no prompt in it; write one per line or row")
    return PromptFile(list(kept.values()), dict(left_out))


def read_prompts(path: str) -> list[EvalPrompt]:
    """Reads every prompt of a file, also repeated ones; see `read_prompt_file`."""
    return [prompt for prompt, _ in read_named_prompts(path)]


def read_named_prompts(path: str) -> list[tuple[EvalPrompt, str]]:
    """Reads every prompt of a file with the name of its image: a table's column of `IMAGE_NAMES`, "" without one."""
    found = [(prompt, name) for prompt, _, name in _read_every_prompt(path) if prompt is not None]
    if not found:
        raise UserError(f"prompts {path}: no prompt in it; write one per line")
    return found


def read_protocol(path: str, count: int, seed: int) -> list[EvalPrompt]:
    """Reads at most ``count`` prompts of a file, each once; see `read_prompt_file`.

    Of more than ``count`` a subset is sampled by ``seed``, in the order of the file, as in COCO-30K.
    """
    return draw_prompts(read_prompt_file(path).prompts, count, seed)


def draw_prompts(prompts: list[EvalPrompt], count: int, seed: int) -> list[EvalPrompt]:
    """Returns at most ``count`` of distinct prompts, drawn by ``seed``, in their order."""
    if len(prompts) <= count:
        return prompts
    chosen = np.random.default_rng([seed, len(prompts)]).choice(len(prompts), count, replace=False)
    return [prompts[index] for index in sorted(chosen)]


def _read_every_prompt(path: str) -> Iterator[tuple[EvalPrompt | None, str, str]]:
    """Yields (prompt, "", name of its image) or (None, why it is none, "") per line that is not empty, or per row."""
    extension = path.rpartition(".")[2].lower()
    is_table = extension in TABLES
    for where, text, category, name in _read_table(path, extension) if is_table else _read_text(path):
        prompt = clean_prompt(text, f"prompts {path}: {where}")
        if not prompt:
            yield None, "empty", ""
        elif not is_table and COMMENT.match(prompt):
            yield None, "comment", ""
        elif len(prompt) > MAX_CHARACTERS:
            raise UserError(
                f"prompts {path}: {where} has {len(prompt)} characters; keep it to {MAX_CHARACTERS} (it begins with "
                f"{prompt[:40]!r})"
            )
        else:
            yield make_prompt(prompt, category), "", name


def make_prompt(prompt: str, category: str = "") -> EvalPrompt:
    """Returns a prompt with its language and, for one of the grammar, its claim; ``category`` becomes its split."""
    language = "zh" if _has_chinese(prompt) else "en"
    return EvalPrompt(prompt, _to_split(category), language, parse_caption(prompt))


def _read_text(path: str) -> Iterator[Row]:
    lines = split_lines(_decode(path, "a text file with one prompt per line"))
    yield from ((f"line {number}", line, "", "") for number, line in enumerate(lines, start=1) if line.strip())


def _decode(path: str, wanted: str) -> str:
    data = read_input(path, "prompts", f"give {wanted}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"prompts {path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def _read_table(path: str, extension: str) -> Iterator[Row]:
    text = _decode(path, f"a .{extension} of prompts")
    try:
        rows = list(_parse_csv(text, extension) if extension in ("csv", "tsv") else _parse_json(text, extension))
    except (json.JSONDecodeError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"prompts {path}: not a .{extension} of prompts ({type(error).__name__}: {error})") from error
    names = list(rows[0][1]) if rows else []
    prompt, category, image = (_find_column(names, known) for known in (PROMPT_NAMES, CATEGORY_NAMES, IMAGE_NAMES))
    if prompt is None:
        raise UserError(f"prompts {path}: no column named {', '.join(PROMPT_NAMES)}; it has {', '.join(names)}")
    for where, row in rows:
        name = str(row.get(image) or "") if image else ""
        yield where, _read_cell(path, where, row, prompt), str(row.get(category) or "") if category else "", name


def _find_column(names: list[str], known: tuple[str, ...]) -> str | None:
    by_name = {name.strip().lower(): name for name in names}
    return next((by_name[name] for name in known if name in by_name), None)


def _read_cell(path: str, where: str, row: dict[str, Any], column: str) -> str:
    """Returns the prompt of a row, "" for none; raises UserError for a value that is no text."""
    value = row.get(column)
    if value is None or value != value:  # NaN, which stands for an empty cell
        return ""
    if not isinstance(value, str):
        raise UserError(f"prompts {path}: {where}: {column} is {str(value)[:40]!r}, not a text; write it in quotes")
    return value


def _parse_csv(text: str, extension: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields rows by column. Raises csv.Error, with the line, for a quote that is not closed or a value too many."""
    # strict: a lone quote would make one prompt of all rows after it.
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if extension == "tsv" else ",", strict=True)
    before = 1
    try:
        for row in reader:
            where, before = f"line {before + 1}", reader.line_num
            if None in row:
                extra = count_of(len(row[None]), "value")
                raise csv.Error(f"{where} has {extra} more than the header; quote a prompt with commas")
            yield where, row
    except csv.Error as error:
        raise error if "line" in str(error) else csv.Error(f"{error}, in the row of line {before + 1}") from error


def _parse_json(text: str, extension: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields rows by key of JSON lines or COCO's captions. Raises json.JSONDecodeError, KeyError or TypeError."""
    if extension == "jsonl":
        named = [(f"line {n}", line) for n, line in enumerate(split_lines(text), start=1) if line.strip()]
        values = ((where, json.loads(line)) for where, line in named)
    else:
        values = ((f"annotation {n}", value) for n, value in enumerate(json.loads(text)["annotations"]))
    for where, value in values:
        if not isinstance(value, dict):
            raise TypeError(f"{where} is no object with a key such as {PROMPT_NAMES[0]}")
        yield where, value


def _to_split(category: str) -> str:
    return re.sub(r"[^\w]+", "_", category.lower()).strip("_") or "user"


def _has_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)
