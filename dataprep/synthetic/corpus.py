"""The embedded corpus: rendered scenes with captions, and planted trouble of known place and kind.

Row ``index`` (image, caption, trouble, bytes) is a pure function of (config, seed, index). Column ``truth`` of the
listing records what is rendered and what is wrong with the row, so that filters can be evaluated.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from dataprep.synthetic.config import ScenesConfig
from dataprep.synthetic.grammar import Claim, find_differences, recolour_claim, render_caption, sample_claim
from dataprep.synthetic.renderer import draw_scene

HOST = "scenes.test"  # reserved name (RFC 6761), which the download maps to the loopback server
CONTENT_TYPE = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
# Random streams, so that no two decisions about a row share numbers.
PLAN, IMAGE, SPOIL, RECOLOUR = 0, 1, 2, 3
BOILERPLATE = (
    "IMG_{n:04d}.jpg",
    "DSC{n:05d}",
    "click here to buy",
    "image",
    "untitled",
    "Free shipping on all orders over $50",
    "图片",
    "点击查看大图",
)


@dataclass(frozen=True)
class SceneRow:
    """One row of the corpus: what is rendered, its caption, and what is wrong with it."""

    index: int
    claim: Claim
    caption: str
    extension: str
    trouble: str | None
    of: int | None  # the row that a duplicate repeats, or that a wrong caption is from

    @property
    def url(self) -> str:
        return f"http://{HOST}/{self.index:06d}.{self.extension}"

    @property
    def truth(self) -> str:
        """JSON: {"claim": what is rendered, "trouble": kind or null, "of": index of the other row or null}."""
        value = {"claim": self.claim.model_dump(), "trouble": self.trouble, "of": self.of}
        return json.dumps(value, ensure_ascii=False)


# ---------------------------------------------------------------------------------------------- rows


def build_scene(config: ScenesConfig, seed: int, index: int) -> SceneRow:
    """Builds row ``index`` of the corpus."""
    rng = np.random.default_rng([seed, PLAN, index])
    trouble = _choose_trouble(config, rng.random())
    claim = sample_claim(rng, related=config.related_share)
    if config.purple_share:
        recolouring = np.random.default_rng([seed, RECOLOUR, index])
        if recolouring.random() < config.purple_share:
            claim = recolour_claim(claim, recolouring)
    language = "zh" if rng.random() < config.chinese_share else "en"
    extension = str(rng.choice(list(CONTENT_TYPE), p=(0.6, 0.2, 0.2)))
    caption = render_caption(claim, language)
    other = None
    if trouble in ("exact_duplicate", "near_duplicate", "wrong_caption"):
        other = _find_other(config, seed, index, claim, trouble)
        if other is None:
            trouble = None  # no suitable row, as at the start
    if other is not None and trouble == "wrong_caption":
        caption = other.caption
    elif other is not None:
        claim, caption = other.claim, other.caption
        extension = other.extension if trouble == "exact_duplicate" else extension
    elif trouble == "boilerplate":
        caption = str(rng.choice(BOILERPLATE)).format(n=int(rng.integers(10000)))
    return SceneRow(index, claim, caption, extension, trouble, other.index if other else None)


def _choose_trouble(config: ScenesConfig, chance: float) -> str | None:
    for kind, rate in config.trouble:
        if chance < rate:
            return kind
        chance -= rate
    return None


def _find_other(config: ScenesConfig, seed: int, index: int, claim: Claim, trouble: str) -> SceneRow | None:
    """Finds a row without trouble: an earlier one to repeat, or one whose caption contradicts ``claim`` twice."""
    rng = np.random.default_rng([seed, SPOIL, index])
    for _ in range(100):
        candidate = int(rng.integers(config.count if trouble == "wrong_caption" else index)) if index else 0
        # The first number of a row's plan decides on trouble; reading only that avoids recursion.
        if (
            candidate == index
            or _choose_trouble(config, np.random.default_rng([seed, PLAN, candidate]).random()) is not None
        ):
            continue
        other = build_scene(config, seed, candidate)
        if trouble != "wrong_caption" or len(find_differences(claim, other.claim)) >= 2:
            return other
    return None


def list_scenes(config: ScenesConfig, seed: int, start: int = 0, stop: int | None = None) -> pa.Table:
    """Returns the rows from ``start`` to before ``stop``; string columns url, caption, truth (`SceneRow.truth`)."""
    last = config.count if stop is None else min(stop, config.count)
    found = [build_scene(config, seed, index) for index in range(start, last)]
    columns = {name: [getattr(row, name) for row in found] for name in ("url", "caption", "truth")}
    return pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns]))


# ---------------------------------------------------------------------------------------------- files


def build_file(config: ScenesConfig, seed: int, row: SceneRow) -> bytes | None:
    """Builds the file that the server sends for ``row``; None for a dead link."""
    rng = np.random.default_rng([seed, SPOIL, row.index, 1])
    if row.trouble == "dead_link":
        return None
    if row.trouble == "mislabelled":
        return b"<!DOCTYPE html><html><body><h1>This image is no longer available</h1></body></html>\n"
    if row.trouble == "exact_duplicate" and row.of is not None:
        return build_file(config, seed, build_scene(config, seed, row.of))
    source = row.of if row.trouble == "near_duplicate" and row.of is not None else row.index
    size = int(rng.integers(8, 25)) if row.trouble == "tiny" else config.image_size
    image = Image.fromarray(draw_scene(row.claim, np.random.default_rng([seed, IMAGE, source]), size))
    if row.trouble == "near_duplicate":
        side = round(size * rng.uniform(0.8, 0.97))
        image = image.resize((side, side), Image.Resampling.LANCZOS)
        light = rng.uniform(0.97, 1.03)
        image = image.point([min(round(value * light), 255) for value in range(256)] * 3)
    if row.trouble == "extreme_aspect":
        short = round(size / rng.uniform(5, 8))
        image = image.resize((size, short) if rng.random() < 0.5 else (short, size), Image.Resampling.LANCZOS)
    data = _encode_image(image, row.extension, quality=int(rng.integers(85, 96)))
    return data[: int(len(data) * rng.uniform(0.3, 0.7))] if row.trouble == "truncated" else data


def _encode_image(image: Image.Image, extension: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    if extension == "png":
        image.save(buffer, "PNG", compress_level=4)
    elif extension == "webp":
        image.save(buffer, "WEBP", quality=quality, method=2)  # half the time of the default, a tenth more bytes
    else:
        image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
