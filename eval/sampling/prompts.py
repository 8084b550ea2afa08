"""Prompts to evaluate a model on: from the grammar of scenes (seen and held-out combinations), or a user's own."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from dataclasses import dataclass

import numpy as np

from dataprep.io.errors import UserError
from dataprep.io.storage import exists, read_bytes
from dataprep.synthetic.grammar import Claim, parse_caption, render_caption, sample_claim

SPLITS = ("seen", "heldout")
MAX_CHARACTERS = 1000  # of a prompt
PROMPT_NAMES, CATEGORY_NAMES = ("prompt", "prompts", "caption", "text"), ("category", "split", "challenge")


@dataclass(frozen=True)
class EvalPrompt:
    """A prompt, the split it is reported under, its language ("en", "zh") and, for one of the grammar, its claim."""

    prompt: str
    split: str
    language: str
    claim: Claim | None


def scene_prompts(count: int, seed: int, chinese_share: float = 0.25) -> list[EvalPrompt]:
    """Returns a prompt for each of ``count`` distinct claims per split: first all "seen", then all "heldout".

    Held-out claims have a combination that the corpus never shows. The prompts of a split are a prefix of those for a
    larger ``count``.
    """
    prompts = []
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([seed, number])
        claims: dict[Claim, str] = {}
        while len(claims) < count:
            claim, language = sample_claim(rng, held_out=split == "heldout"), _sample_language(rng, chinese_share)
            claims.setdefault(claim, language)
        prompts += [
            EvalPrompt(render_caption(claim, language), split, language, claim) for claim, language in claims.items()
        ]
    return prompts


def hash_prompt(prompt: str) -> int:
    """Hashes a prompt to 64 bits: part of a noise seed, so that the prompts of a call do not share their noise."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")


def _sample_language(rng: np.random.Generator, chinese_share: float) -> str:
    return "zh" if rng.random() < chinese_share else "en"


def read_prompts(path: str) -> list[EvalPrompt]:
    """Reads a UTF-8 text file at any fsspec URL, one prompt per line; empty lines and lines with '#' first are skipped.

    Their split is "user". Raises UserError for a file that is missing, empty, not text, or has an overlong line.
    """
    if not exists(path):
        raise UserError(f"prompts {path}: no such file; give a text file with one prompt per line")
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except IsADirectoryError as error:
        raise UserError(f"prompts {path}: a folder; give a text file with one prompt per line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"prompts {path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    prompts = []
    for number, line in enumerate(text.splitlines(), start=1):
        prompt = line.strip()
        if not prompt or prompt.startswith("#"):
            continue
        if len(prompt) > MAX_CHARACTERS:
            raise UserError(f"prompts {path}: line {number} has {len(prompt)} characters; keep it to {MAX_CHARACTERS}")
        prompts.append(EvalPrompt(prompt, "user", "zh" if _has_chinese(prompt) else "en", parse_caption(prompt)))
    if not prompts:
        raise UserError(f"prompts {path}: no prompt in it; write one per line")
    return prompts


def read_protocol(path: str, count: int, seed: int) -> list[EvalPrompt]:
    """Reads the prompts of an evaluation protocol at any fsspec URL, at most ``count``, each once.

    Formats by extension: ``.txt`` as in `read_prompts`; ``.csv``, ``.tsv`` or ``.jsonl`` with a column of
    `PROMPT_NAMES` and optionally one of `CATEGORY_NAMES` (DrawBench), which becomes the split; ``.json`` as COCO's
    captions ({"annotations": [{"caption": ...}]}). Of more than ``count`` a subset is sampled by ``seed``, in the order
    of the file, as in COCO-30K. Raises UserError for a file of another form or without a prompt.
    """
    extension = path.rpartition(".")[2].lower()
    if extension not in ("csv", "tsv", "jsonl", "json"):
        found = read_prompts(path)
    else:
        pairs = _read_rows(path, extension)
        found = [
            EvalPrompt(prompt, _to_split(category), "zh" if _has_chinese(prompt) else "en", parse_caption(prompt))
            for prompt, category in pairs
            if 0 < len(prompt) <= MAX_CHARACTERS
        ]
    distinct = list({prompt.prompt: prompt for prompt in found}.values())
    if not distinct:
        raise UserError(f"prompts {path}: no prompt in it of 1 to {MAX_CHARACTERS} characters")
    if len(distinct) <= count:
        return distinct
    chosen = np.random.default_rng([seed, len(distinct)]).choice(len(distinct), count, replace=False)
    return [distinct[index] for index in sorted(chosen)]


def _read_rows(path: str, extension: str) -> list[tuple[str, str]]:
    """Returns (prompt, category or "") per row of a table."""
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


def _to_split(category: str) -> str:
    return re.sub(r"[^\w]+", "_", category.lower()).strip("_") or "user"


def _has_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)
