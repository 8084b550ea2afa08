"""Prompts: what one is, and those of the grammar of scenes (seen and held-out combinations) to evaluate a model on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from dataprep.io.plain_text import check_text
from dataprep.synthetic.grammar import Claim, render_caption, sample_claim

SPLITS = ("seen", "heldout")


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


def clean_prompt(prompt: str, where: str = "prompt") -> str:
    """Returns ``prompt`` without the blanks around it, which no encoder reads but which would change the noise.

    Raises UserError, naming ``where``, for what is no text; see `check_text`.
    """
    return check_text(prompt, where).strip()


def hash_prompt(prompt: str) -> int:
    """Hashes a prompt to 64 bits: part of a noise seed, so that the prompts of a call do not share their noise."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")


def _sample_language(rng: np.random.Generator, chinese_share: float) -> str:
    return "zh" if rng.random() < chinese_share else "en"
