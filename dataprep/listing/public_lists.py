"""Published lists by name, and lists that their publishers withdrew.

LAION-5B and LAION-400M were withdrawn in December 2023: Thiel, "Identifying and Eliminating CSAM in Generative ML
Training Data and Models" (Stanford Internet Observatory, 2023), found links to known child sexual abuse material in
them. Re-LAION-5B (LAION, August 2024) is LAION-5B without the 2,236 links that child protection organisations had on
their lists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class PublicList:
    """Where a published list is, and the layout of its columns.

    A licence that its publisher gives is of the list: the images are their owners', and nothing is known of them.
    """

    path: str
    layout: str


def _relaion(name: str) -> PublicList:
    return PublicList(f"hf://datasets/laion/{name}", "laion")


# Both variants are behind a form on the hub: HF_TOKEN is the token of an account that was let in.
PUBLIC_LISTS: dict[str, PublicList] = {
    "relaion2B-en-research-safe": _relaion("relaion2B-en-research-safe"),
    "relaion2B-multi-research-safe": _relaion("relaion2B-multi-research-safe"),
    "relaion1b-nolang-research-safe": _relaion("relaion1b-nolang-research-safe"),
    "relaion2B-en-research": _relaion("relaion2B-en-research"),
    "relaion2B-multi-research": _relaion("relaion2B-multi-research"),
    "relaion1b-nolang-research": _relaion("relaion1b-nolang-research"),
}

# The parts of LAION-5B and LAION-400M, and the subsets that LAION published of them, as their folders and files are
# called, without hyphens and underscores; Re-LAION's names have "re" before them.
WITHDRAWN = re.compile(r"(?<!re)laion(400m|5b|2b|1b|aesthetic|highres|(art|coco)(?![a-z]))")
WITHDRAWN_REASON = (
    "LAION withdrew LAION-400M, LAION-5B and their subsets in December 2023, after links to known child sexual abuse "
    "material had been found in them; take Re-LAION, which is without these (source: public, path: "
    "relaion2B-en-research-safe), or set withdrawn: allow if you have the right and a reason to use the old list"
)


def is_withdrawn(path: str) -> bool:
    """Returns whether a path names a list that was withdrawn; the name is all that can be seen without reading it."""
    return WITHDRAWN.search(re.sub(r"[-_ ]", "", path.lower())) is not None
