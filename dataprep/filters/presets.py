"""Recipes by name: the filters of published datasets, exactly as in their source.

A recipe turns every other filter off; keys given beside it override its own. Where a source counts differently, the
recipe says so: words are separated by spaces, similarities are those of the model that the source names. Languages come
from this project's classifier (DataComp used fastText, LAION gcld3: short captions may be classified differently).
"""

from __future__ import annotations

import difflib
from typing import Any

from dataprep.filters.registry import FILTERS

RECIPES: dict[str, dict[str, Any]] = {
    # mlfoundations/datacomp, baselines/apply_filter.py, load_uids_with_basic_filter_helper: more than 2 words, more
    # than 5 characters, English, shorter side at least 200, aspect at most 3.
    "datacomp-basic": {
        "languages": ("en",),
        "min_caption_words": 3,
        "words": "spaces",
        "min_caption_chars": 6,
        "min_side": 200,
        "max_aspect": 3.0,
    },
    # The same file, get_threshold: at or above the value at index int(rows x 0.3), descending, of ViT-L/14.
    "datacomp-clip-top30": {"top_similarity": 0.3, "similarity": "listed_similarity_l14"},
    # LAION-5B (arXiv 2210.08402), English part: captions classified as English, ViT-B/32 at least 0.28.
    "laion-2b-en": {"languages": ("en",), "min_similarity": 0.28, "similarity": "listed_similarity_b32"},
    # LAION-400M (arXiv 2111.02114): captions of 5 characters, files of 5 KB, each URL and text once, ViT-B/32 0.3.
    "laion-400m": {
        "min_caption_chars": 5,
        "min_bytes": 5000,
        "duplicate_pairs": True,
        "min_similarity": 0.3,
        "similarity": "listed_similarity_b32",
    },
    # LAION-AI/laion-datasets, laion-aesthetic.md: aesthetic above 7, pwatermark below 0.8, punsafe below 0.5.
    "laion-aesthetic": {"aesthetic_above": 7.0, "watermark_below": 0.8, "unsafe_below": 0.5},
    # Stable Diffusion v1, model card: aesthetics 5+, watermark probability below 0.5, at least 512 x 512.
    "sd-v1": {"min_aesthetic": 5.0, "watermark_below": 0.5, "min_side": 512},
}


def expand_recipe(name: str) -> dict[str, Any]:
    """Returns the keys of `SelectConfig` that a recipe sets: its own, and for every other filter "off".

    Raises ValueError, naming the nearest recipe, for an unknown name.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(RECIPES)}"
        raise ValueError(f"recipe {name!r} is not known; {hint}")
    off = {key: value for cls in FILTERS.values() for key, value in cls.off.items()}
    return off | RECIPES[name]
