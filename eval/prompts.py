"""Prompts to judge a model by: drawn from the grammar of scenes (seen and held-out combinations), or a user's own."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass

import numpy as np

from dataprep.grammar import Claim, draw_claim, parse, render
from dataprep.schema import UserError
from dataprep.storage import exists, read_bytes

SPLITS = ("seen", "heldout")
LONGEST = 1000  # characters of a prompt
PROMPT_NAMES, CATEGORY_NAMES = ("prompt", "prompts", "caption", "text"), ("category", "split", "challenge")


@dataclass(frozen=True)
class EvalPrompt:
    """A prompt, the split it is reported under, its language ("en", "zh") and, if of the grammar, what it claims."""

    prompt: str
    split: str
    language: str
    claim: Claim | None


def scene_prompts(count: int, seed: int, chinese_share: float = 0.25) -> list[EvalPrompt]:
    """``count`` different claims of each split, said once each: first all "seen", then all "heldout".

    Held-out claims have a combination that the corpus never shows. The first k of a longer list are the list of k.
    """
    prompts = []
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([seed, number])
        claims: dict[Claim, str] = {}
        while len(claims) < count:
            claim, language = draw_claim(rng, held_out=split == "heldout"), _language(rng, chinese_share)
            claims.setdefault(claim, language)
        prompts += [EvalPrompt(render(claim, said), split, said, claim) for claim, said in claims.items()]
    return prompts


def _language(rng: np.random.Generator, chinese_share: float) -> str:
    return "zh" if rng.random() < chinese_share else "en"


def read_prompts(path: str) -> list[EvalPrompt]:
    """The prompts of a UTF-8 text file at any fsspec URL, one a line; empty lines and lines after '#' are passed over.

    Their split is "user". Raises UserError for a file that is missing, empty, not text, or has an overlong line.
    """
    if not exists(path):
        raise UserError(f"prompts {path}: no such file; give a text file with a prompt a line")
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except IsADirectoryError as error:
        raise UserError(f"prompts {path}: a folder; give a text file with a prompt a line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"prompts {path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    prompts = []
    for number, line in enumerate(text.splitlines(), start=1):
        prompt = line.strip()
        if not prompt or prompt.startswith("#"):
            continue
        if len(prompt) > LONGEST:
            raise UserError(f"prompts {path}: line {number} has {len(prompt)} characters; keep it to {LONGEST}")
        prompts.append(EvalPrompt(prompt, "user", "zh" if _has_chinese(prompt) else "en", parse(prompt)))
    if not prompts:
        raise UserError(f"prompts {path}: no prompt in it; write one a line")
    return prompts


def read_protocol(path: str, count: int, seed: int) -> list[EvalPrompt]:
    """The prompts of an evaluation protocol from a file at any fsspec URL, ``count`` of them at most, each once.

    By the file's extension: ``.txt`` as `read_prompts`; ``.csv``, ``.tsv`` or ``.jsonl`` with a column of
    `PROMPT_NAMES` and maybe one of `CATEGORY_NAMES` (DrawBench), which becomes the split; ``.json`` as COCO's captions
    are ({"annotations": [{"caption": ...}]}). Where there are more than ``count`` they are drawn by ``seed`` and keep
    their order, as COCO-30K draws its 30,000. UserError where it is none of these or holds no prompt.
    """
    extension = path.rpartition(".")[2].lower()
    if extension not in ("csv", "tsv", "jsonl", "json"):
        found = read_prompts(path)
    else:
        pairs = _read_rows(path, extension)
        found = [
            EvalPrompt(prompt, _split(category), "zh" if _has_chinese(prompt) else "en", parse(prompt))
            for prompt, category in pairs
            if 0 < len(prompt) <= LONGEST
        ]
    distinct = list({prompt.prompt: prompt for prompt in found}.values())
    if not distinct:
        raise UserError(f"prompts {path}: no prompt in it of 1 to {LONGEST} characters")
    if len(distinct) <= count:
        return distinct
    chosen = np.random.default_rng([seed, len(distinct)]).choice(len(distinct), count, replace=False)
    return [distinct[index] for index in sorted(chosen)]


def _read_rows(path: str, extension: str) -> list[tuple[str, str]]:
    """(prompt, category or "") of a table."""
    if not exists(path):
        raise UserError(f"prompts {path}: no such file; give a file of prompts")
    try:
        text = read_bytes(path).decode("utf-8-sig")
        if extension == "json":
            rows = json.loads(text)["annotations"]
        elif extension == "jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if extension == "tsv" else ","))
        names = {str(name).lower(): name for name in rows[0]} if rows else {}
        prompt = next((names[name] for name in PROMPT_NAMES if name in names), None)
        category = next((names[name] for name in CATEGORY_NAMES if name in names), None)
        if prompt is None:
            raise UserError(f"prompts {path}: no column named {', '.join(PROMPT_NAMES)}; it has {', '.join(names)}")
        return [(str(row[prompt] or "").strip(), str(row.get(category) or "") if category else "") for row in rows]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"prompts {path}: not a .{extension} of prompts ({type(error).__name__}: {error})") from error


def _split(category: str) -> str:
    return re.sub(r"[^\w]+", "_", category.lower()).strip("_") or "user"


def _has_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)
