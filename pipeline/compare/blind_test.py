"""A blind test of two runs: a page of unnamed image pairs in random order, and the counting of raters' choices.

The page holds its key (which side is which run) compressed and copies it into the file of choices that it saves, so
that counting needs nothing but that file. The key is obfuscated, not encrypted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from dataprep.io.errors import UserError
from dataprep.io.inputs import read_input
from dataprep.io.wording import count_of
from eval.metrics.intervals import wilson_interval
from pipeline.compare.page import render_template
from pipeline.compare.runs import ComparedRun, ImagePair
from pipeline.report.images import encode_png_url
from pipeline.units import format_percent

FORMAT = 1
# The two questions that raters answer on DrawBench (Imagen).
QUESTIONS = {"text": "Which image matches the text better?", "image": "Which image looks better?"}
ANSWERS = ("left", "right", "same")


def render_blind_test(a: ComparedRun, b: ComparedRun, pairs: Sequence[ImagePair], shown: int, seed: int) -> str:
    """Returns the test as self-contained HTML: up to ``shown`` pairs, in an order and on sides drawn from ``seed``."""
    fingerprints = [side.artifacts["sample"].manifest.fingerprint for side in (a, b)]
    test = hashlib.sha256(json.dumps([fingerprints, seed, shown]).encode()).hexdigest()[:12]
    rng = np.random.default_rng([seed, int(test, 16)])
    order = [int(number) for number in rng.permutation(len(pairs))[:shown]]
    a_is_left = [bool(side) for side in rng.integers(0, 2, len(order))]
    items = []
    for number, left in zip(order, a_is_left, strict=True):
        images = [encode_png_url(sample.png or b"") for sample in pairs[number].chosen]
        items.append({"prompt": pairs[number].prompt, "sources": images if left else images[::-1]})
    sealed = seal_key({"names": [a.name, b.name], "a_is_left": a_is_left})
    return render_template(
        "blind_test.html.jinja", test=test, sealed=sealed, pairs=items, questions=QUESTIONS, format=FORMAT
    )


def seal_key(key: Mapping[str, Any]) -> str:
    """Returns the key as unreadable text."""
    return base64.b64encode(zlib.compress(json.dumps(key).encode())).decode()


def unseal_key(text: str) -> dict[str, Any]:
    """Returns the key that `seal_key` packed."""
    key: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text, validate=True)))
    return key


def count_choices(paths: Sequence[str]) -> dict[str, Any]:
    """Counts files of choices of one test: names, raters, pairs, and figures per question.

    The figures are a, b and same (choices for each), share_b (of a and b) with its 95% Wilson interval low and high,
    and p (exact two-sided binomial test against even odds). Raises UserError for a file that the page did not save
    and for files of several tests.
    """
    files = [_read_choices(path) for path in paths]
    if other := [path for path, file in zip(paths, files, strict=True) if file["test"] != files[0]["test"]]:
        raise UserError(f"--count {other[0]}: belongs to another test than {paths[0]}; count each test separately")
    key = files[0]["key"]
    result: dict[str, Any] = {"names": key["names"], "raters": len(files), "pairs": len(key["a_is_left"])}
    for question in QUESTIONS:
        counts = {"a": 0, "b": 0, "same": 0}
        for file in files:
            for number, answers in file["choices"].items():
                answer = answers.get(question)
                if answer is not None:
                    left = "a" if key["a_is_left"][int(number)] else "b"
                    right = "b" if left == "a" else "a"
                    counts[{"left": left, "right": right, "same": "same"}[answer]] += 1
        decided = counts["a"] + counts["b"]
        figures: dict[str, Any] = dict(counts) | {"share_b": None, "low": None, "high": None, "p": None}
        if decided:
            figures |= {"share_b": counts["b"] / decided, "p": float(binomtest(counts["b"], decided).pvalue)}
            figures |= wilson_interval(counts["b"], decided)
        result[question] = figures
    return result


def _read_choices(path: str) -> dict[str, Any]:
    """Returns a file of choices with its key unsealed. Raises UserError for any other file."""
    data = read_input(path, "--count", "give one that the blind test page saved")
    try:
        file = json.loads(data)
        if file["format"] != FORMAT:
            raise UserError(f"--count {path}: format {file['format']!r} is not supported; this version reads {FORMAT}")
        key = unseal_key(file["sealed"])
        sides = key["a_is_left"]
        answers = [(int(n), a) for n, given in file["choices"].items() for a in given.values()]
        if any(not 0 <= number < len(sides) or answer not in ANSWERS for number, answer in answers):
            raise ValueError("a choice the page does not offer")
        return {"test": file["test"], "choices": file["choices"], "key": key}
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error, binascii.Error) as error:
        raise UserError(f"--count {path}: not a file of choices ({type(error).__name__}: {error})") from error


def summarize_choices(result: Mapping[str, Any]) -> list[str]:
    """Returns the counts as text: a heading and a line per question."""
    names, raters, pairs = result["names"], count_of(result["raters"], "rater"), count_of(result["pairs"], "pair")
    lines = [f"A = {names[0]}, B = {names[1]}; {raters}, {pairs}"]
    for question, text in QUESTIONS.items():
        found = result[question]
        line = f"{text} A {found['a']}, B {found['b']}, same {found['same']}"
        if found["share_b"] is not None:
            interval = f"[{format_percent(found['low'], 0)}, {format_percent(found['high'], 0)}]"
            line += f"; B in {format_percent(found['share_b'], 0)} {interval} of the choices, p = {found['p']:.3g}"
            clear = found["low"] > 0.5 or found["high"] < 0.5
            line += f": {'B' if found['share_b'] > 0.5 else 'A'} is preferred" if clear else ": inconclusive"
        lines.append(line)
    return lines
