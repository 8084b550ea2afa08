"""Prompts to judge a model by: drawn from the grammar of scenes (seen and held-out combinations), or a user's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataprep.grammar import Claim, draw_claim, parse, render
from dataprep.schema import UserError
from dataprep.storage import exists, read_bytes

SPLITS = ("seen", "heldout")
LONGEST = 1000  # characters of a prompt


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


def _has_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)
