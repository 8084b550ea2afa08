"""Who and where captions speak of, what they say beside, and what detectors and heads see in the images.

Captions are counted by their words: one that names nobody counts for nobody, and a word is counted whatever it means.
Terms are English, Chinese, French, German and Spanish. Memory is bounded: of more than `MOST_WORDS` words those in the
fewest captions are dropped. Captions and images are those of a dataset, or prompts and samples of a model.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataprep.io.scorer_heads import HEADS, LABEL_PREFIX

MOST_WORDS = 500_000
SHOWN = 8  # words per group of people
LEAST_TOGETHER = 5  # captions with a word and a group; of fewer, nothing is said
LEAST_LIFT = 1.5  # how many times as often a word stands beside a group as it does anywhere
MOST_COUNTED_FACES = 5  # images with more are one class
TEXT_BOUNDS = (0.01, 0.05, 0.2, 0.5)  # between classes of the share that text covers
PROBABILITY_BOUNDS = (0.2, 0.5, 0.8)
WORD = re.compile(r"[^\W\d_]{2,}")
CJK = re.compile(r"[㐀-䶿一-鿿]")
# fmt: off
PEOPLE: Mapping[str, frozenset[str]] = {
    "women": frozenset({
        "woman", "women", "lady", "ladies", "female", "females", "she", "frau", "frauen", "femme", "femmes", "mujer",
        "mujeres", "女人", "女性", "女士",
    }),
    "men": frozenset({
        "man", "men", "gentleman", "gentlemen", "male", "males", "he", "mann", "männer", "homme", "hommes", "hombre",
        "hombres", "男人", "男性", "男士",
    }),
    "girls": frozenset({"girl", "girls", "mädchen", "fille", "filles", "chica", "chicas", "niña", "niñas", "女孩"}),
    "boys": frozenset({
        "boy", "boys", "junge", "jungen", "garçon", "garçons", "chico", "chicos", "niño", "niños",
        "男孩",
    }),
    "children": frozenset({
        "child", "children", "kid", "kids", "baby", "babies", "toddler", "toddlers", "kinder", "enfant", "enfants",
        "bébé", "bebé", "孩子", "儿童", "婴儿",
    }),
    "old people": frozenset({"elderly", "pensioner", "pensioners", "老人", "老年"}),
}
# fmt: on
TERMS = {term: group for group, terms in PEOPLE.items() for term in terms}
CJK_TERMS = [(term, group) for term, group in TERMS.items() if CJK.search(term)]
# Country-code domains that are mostly sold for what they spell.
GENERIC = frozenset({"ai", "cc", "co", "fm", "gg", "io", "la", "ly", "me", "sh", "so", "to", "tv", "ws"})


@dataclass
class AuditCounts:
    """Counts over the kept rows of all shards."""

    captions: int = 0
    words: Counter[str] = field(default_factory=Counter)  # captions that have the word
    groups: Counter[str] = field(default_factory=Counter)  # captions that name somebody of the group
    beside: dict[str, Counter[str]] = field(default_factory=lambda: {group: Counter() for group in PEOPLE})
    faces: Counter[str] = field(default_factory=Counter)  # images by their number of faces
    text: Counter[str] = field(default_factory=Counter)  # images by the share that text covers
    labels: dict[str, Counter[str]] = field(default_factory=dict)  # question -> images by label
    heads: dict[str, Counter[str]] = field(default_factory=dict)  # head -> images by class of its value
    exact: bool = True  # no word was dropped

    def add_captions(self, captions: Iterable[str]) -> None:
        """Counts the words of each caption once."""
        for caption in captions:
            lower = caption.lower()
            words = set(WORD.findall(CJK.sub(" ", lower)))
            groups = {TERMS[word] for word in words & TERMS.keys()}
            if CJK.search(lower):
                groups |= {group for term, group in CJK_TERMS if term in lower}
            self.captions += 1
            self.words.update(words)
            self.groups.update(groups)
            for group in groups:
                self.beside[group].update(words)
        self.words = self._bound(self.words)
        self.beside = {group: self._bound(counts) for group, counts in self.beside.items()}

    def add_faces(self, faces: Iterable[int | None]) -> None:
        """Counts images by their number of faces; null: not looked for."""
        for count in faces:
            if count is not None:
                self.faces[str(count) if count < MOST_COUNTED_FACES else f"{MOST_COUNTED_FACES} or more"] += 1

    def expect_labels(self, questions: Mapping[str, Iterable[str]]) -> None:
        """Makes known which labels there are, so that those of no image are named too."""
        self.labels |= {question: Counter(dict.fromkeys(labels, 0)) for question, labels in questions.items()}

    def add_measured(self, columns: Mapping[str, Iterable[Any]]) -> None:
        """Counts what was measured of images, by column of the annotations or scores; other columns are left out.

        A null is an image that was not measured.
        """
        for name, column in columns.items():
            values = [value for value in column if value is not None]
            if name == "faces":
                self.add_faces(values)
            elif name == "text_area":
                self.text.update(classify_text(value) for value in values)
            elif name.startswith(LABEL_PREFIX):
                self.labels.setdefault(name.removeprefix(LABEL_PREFIX), Counter()).update(values)
            elif name in HEADS:
                self.heads.setdefault(name, Counter()).update(classify_head(name, value) for value in values)

    def _bound(self, counts: Counter[str]) -> Counter[str]:
        if len(counts) <= MOST_WORDS:
            return counts
        self.exact = False
        return Counter(dict(counts.most_common(MOST_WORDS // 2)))


def is_audited(column: str) -> bool:
    """Returns whether `AuditCounts.add_measured` counts a column."""
    return column in ("faces", "text_area", *HEADS) or column.startswith(LABEL_PREFIX)


def classify_text(share: float) -> str:
    """Returns the class of a share of an image that text covers."""
    return _classify(share, TEXT_BOUNDS, "{:.0%}") if share else "none"


def classify_head(name: str, value: float) -> str:
    """Returns the class of a head's value: of a probability a range, of another value the whole number below it."""
    return str(math.floor(value)) if HEADS[name].limit is None else _classify(value, PROBABILITY_BOUNDS, "{:g}")


def _classify(value: float, bounds: Sequence[float], form: str) -> str:
    above = [bound for bound in bounds if value >= bound]
    return f"from {form.format(above[-1])}" if above else f"below {form.format(bounds[0])}"


def build_audit(counts: AuditCounts, hosts: Mapping[str, int]) -> dict[str, Any]:
    """Returns the counts as JSON-able data in a fixed order; ``hosts``: images by host.

    ``beside`` lists, by group, words that stand at least `LEAST_LIFT` times as often beside it as anywhere: word,
    captions with both, and how many times as often.
    """
    return {
        "captions": counts.captions,
        "exact": counts.exact,
        "people": {group: counts.groups[group] for group in PEOPLE},
        "beside": {group: _find_associated(group, counts) for group in PEOPLE},
        "countries": _count_countries(hosts),
        "faces": dict(sorted(counts.faces.items())),
        "text": _order(counts.text, ["none", *(classify_text(bound) for bound in (1e-9, *TEXT_BOUNDS))]),
        "labels": {question: dict(found) for question, found in counts.labels.items()},
        "heads": {name: _order_head(name, counts.heads[name]) for name in HEADS if name in counts.heads},
    }


def _order_head(name: str, counts: Counter[str]) -> dict[str, int]:
    if HEADS[name].limit is None:
        return dict(sorted(counts.items(), key=lambda item: int(item[0])))
    return _order(counts, [classify_head(name, bound) for bound in (0, *PROBABILITY_BOUNDS)])


def _order(counts: Counter[str], classes: Sequence[str]) -> dict[str, int]:
    return {name: counts[name] for name in classes} if counts else {}


def _find_associated(group: str, counts: AuditCounts) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for word, together in counts.beside[group].items():
        if together < LEAST_TOGETHER or word in TERMS:
            continue
        expected = counts.groups[group] * counts.words[word] / counts.captions
        if expected and (lift := together / expected) >= LEAST_LIFT:
            found.append({"word": word, "captions": together, "lift": round(lift, 2)})
    return sorted(found, key=lambda item: (-item["captions"] * (item["lift"] - 1), item["word"]))[:SHOWN]


def _count_countries(hosts: Mapping[str, int]) -> dict[str, int]:
    """Counts images by the country code that their host's name ends with."""
    countries: Counter[str] = Counter()
    for host, images in hosts.items():
        last = host.rpartition(".")[2]
        if len(last) == 2 and last.isalpha() and last not in GENERIC:
            countries[last] += images
    return dict(sorted(countries.items(), key=lambda item: (-item[1], item[0])))
