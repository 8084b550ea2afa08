"""A blind test of two runs: a page of pairs without names, in a random order, and the counting of what people chose.

The page carries its key (which side was which) packed up, and puts it into the file of choices that it saves, so that
one file that comes back is all that counting needs. It is hidden from the eye, not from someone who wants to look.
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

from dataprep import storage
from dataprep.schema import UserError
from eval.statistics import wilson
from pipeline.compare import Pair, Side, render
from pipeline.report.images import png_url

FORMAT = 1
# The two questions that DrawBench's raters are asked.
QUESTIONS = {"text": "Which shows better what the text says?", "image": "Which is the better picture?"}
ANSWERS = ("left", "right", "same")


def blind_page(a: Side, b: Side, pairs: Sequence[Pair], shown: int, seed: int) -> str:
    """The test as one self-contained HTML text: ``shown`` pairs at most, in an order and on sides drawn by ``seed``."""
    made_of = [side.artifacts["sample"].manifest.fingerprint for side in (a, b)]
    test = hashlib.sha256(json.dumps([made_of, seed, shown]).encode()).hexdigest()[:12]
    rng = np.random.default_rng([seed, int(test, 16)])
    order = [int(number) for number in rng.permutation(len(pairs))[:shown]]
    a_is_left = [bool(side) for side in rng.integers(0, 2, len(order))]
    items = []
    for number, left in zip(order, a_is_left, strict=True):
        pictures = [png_url(row["png"]) for row in pairs[number].chosen]
        items.append({"prompt": pairs[number].prompt, "sources": pictures if left else pictures[::-1]})
    key = seal({"names": [a.name, b.name], "a_is_left": a_is_left})
    return render("blind.html.jinja", test=test, sealed=key, pairs=items, questions=QUESTIONS, format=FORMAT)


def seal(key: Mapping[str, Any]) -> str:
    """The key as letters that say nothing to a reader."""
    return base64.b64encode(zlib.compress(json.dumps(key).encode())).decode()


def unseal(text: str) -> dict[str, Any]:
    """The key that `seal` packed."""
    key: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text, validate=True)))
    return key


def count(paths: Sequence[str]) -> dict[str, Any]:
    """Files of choices of one test counted: names, raters, and a question's figures.

    A question has a, b and same (choices for each), share_b (of those that chose) with its 95% Wilson interval low and
    high, and p (of so uneven a count if both were as good; exact binomial test, two-sided). UserError for a file that
    the page did not save, or of another test.
    """
    files = [_read(path) for path in paths]
    if other := [path for path, file in zip(paths, files, strict=True) if file["test"] != files[0]["test"]]:
        raise UserError(f"--count {other[0]}: of another test than {paths[0]}; count each test for itself")
    key = files[0]["key"]
    result: dict[str, Any] = {"names": key["names"], "raters": len(files), "pairs": len(key["a_is_left"])}
    for question in QUESTIONS:
        said = {"a": 0, "b": 0, "same": 0}
        for file in files:
            for number, answers in file["choices"].items():
                answer = answers.get(question)
                if answer is not None:
                    left = "a" if key["a_is_left"][int(number)] else "b"
                    right = "b" if left == "a" else "a"
                    said[{"left": left, "right": right, "same": "same"}[answer]] += 1
        decided = said["a"] + said["b"]
        figures: dict[str, Any] = dict(said) | {"share_b": None, "low": None, "high": None, "p": None}
        if decided:
            figures |= {"share_b": said["b"] / decided, "p": float(binomtest(said["b"], decided).pvalue)}
            figures |= wilson(said["b"], decided)
        result[question] = figures
    return result


def _read(path: str) -> dict[str, Any]:
    """A file of choices with its key opened; UserError where it is none."""
    if not storage.exists(path):
        raise UserError(f"--count {path}: no such file; give one that the page of a blind test saved")
    try:
        file = json.loads(storage.read_bytes(path))
        if file["format"] != FORMAT:
            raise UserError(f"--count {path}: format {file['format']!r}, this imagen-ray reads {FORMAT}")
        key = unseal(file["sealed"])
        sides = key["a_is_left"]
        answers = [(int(n), a) for n, given in file["choices"].items() for a in given.values()]
        if any(not 0 <= number < len(sides) or answer not in ANSWERS for number, answer in answers):
            raise ValueError("a choice that the page does not offer")
        return {"test": file["test"], "choices": file["choices"], "key": key}
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error, binascii.Error) as error:
        raise UserError(f"--count {path}: not a file of choices ({type(error).__name__}: {error})") from error


def summary(result: Mapping[str, Any]) -> list[str]:
    """What was counted, a line a question."""
    names = result["names"]
    lines = [f"A = {names[0]}, B = {names[1]}; {result['raters']} raters, {result['pairs']} pairs"]
    for question, text in QUESTIONS.items():
        found = result[question]
        line = f"{text} A {found['a']}, B {found['b']}, same {found['same']}"
        if found["share_b"] is not None:
            interval = f"[{100 * found['low']:.0f}%, {100 * found['high']:.0f}%]"
            line += f"; B in {100 * found['share_b']:.0f}% {interval} of the choices, p = {found['p']:.3g}"
            told = found["low"] > 0.5 or found["high"] < 0.5
            line += f": {'B' if found['share_b'] > 0.5 else 'A'} is preferred" if told else ": cannot tell"
        lines.append(line)
    return lines
