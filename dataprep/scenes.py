"""The embedded corpus: drawings with captions, served over loopback HTTP, with planted trouble of known place and kind.

Everything about row ``index`` is a pure function of (config, seed, index): its picture, caption, trouble and bytes.
The column ``truth`` of the listing says what is drawn and what is wrong with the row, so that filters can be judged.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field, model_validator

from dataprep.drawing import draw
from dataprep.grammar import Claim, differing, draw_claim, render
from dataprep.schema import Config

HOST = "scenes.test"  # a reserved name (RFC 6761): the downloader maps it to the loopback server
CONTENT_TYPE = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
# Streams of randomness, so that no two decisions about a row share numbers.
PLAN, PICTURE, SPOIL = 0, 1, 2
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


class TroubleRates(Config):
    """The share of the rows that each kind of planted trouble takes."""

    dead_link: float = Field(default=0.03, ge=0, le=1, description="the server answers 404")
    truncated: float = Field(default=0.015, ge=0, le=1, description="the image file ends early")
    mislabelled: float = Field(default=0.015, ge=0, le=1, description="an HTML page under an image type")
    tiny: float = Field(default=0.02, ge=0, le=1, description="8 to 24 pixels a side")
    extreme_aspect: float = Field(default=0.02, ge=0, le=1, description="five to eight times as wide as high, or high")
    exact_duplicate: float = Field(default=0.03, ge=0, le=1, description="the bytes of an earlier row")
    near_duplicate: float = Field(default=0.03, ge=0, le=1, description="an earlier row resized, lit, encoded again")
    wrong_caption: float = Field(default=0.04, ge=0, le=1, description="the caption of another picture")
    boilerplate: float = Field(default=0.03, ge=0, le=1, description="a caption that says nothing")

    @model_validator(mode="after")
    def _check(self) -> TroubleRates:
        if (total := sum(rate for _, rate in self)) > 0.9:
            raise ValueError(f"trouble rates add up to {total:.2f}; keep the sum at or below 0.9")
        return self


TROUBLES = tuple(TroubleRates.model_fields)


class ScenesConfig(Config):
    """How many scenes, how large, in which languages, and what is wrong with them."""

    count: int = Field(default=4000, ge=1, description="rows of the listing, troubled ones included")
    image_size: int = Field(default=256, ge=32, le=2048, description="pixels a side")
    chinese_share: float = Field(default=0.25, ge=0, le=1, description="share of Chinese captions, the rest is English")
    related_share: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="share of pictures of two groups in a relation: the hardest to learn, so more than prompts have",
    )
    trouble: TroubleRates = Field(default=TroubleRates(), description="the share of each kind of planted trouble")


@dataclass(frozen=True)
class Row:
    """One row of the corpus: what is drawn, what its caption says, what is wrong with it."""

    index: int
    claim: Claim
    caption: str
    extension: str
    trouble: str | None
    of: int | None  # the row that a duplicate repeats, or whose caption a wrong caption is

    @property
    def url(self) -> str:
        return f"http://{HOST}/{self.index:06d}.{self.extension}"

    @property
    def truth(self) -> str:
        """JSON: {"claim": what is drawn, "trouble": kind or null, "of": the other row's index or null}."""
        value = {"claim": self.claim.model_dump(), "trouble": self.trouble, "of": self.of}
        return json.dumps(value, ensure_ascii=False)


# ---------------------------------------------------------------------------------------------- rows


def scene(config: ScenesConfig, seed: int, index: int) -> Row:
    """Row ``index`` of the corpus."""
    rng = np.random.default_rng([seed, PLAN, index])
    trouble = _trouble(config, rng.random())
    claim = draw_claim(rng, related=config.related_share)
    language = "zh" if rng.random() < config.chinese_share else "en"
    extension = str(rng.choice(list(CONTENT_TYPE), p=(0.6, 0.2, 0.2)))
    caption = render(claim, language)
    other = None
    if trouble in ("exact_duplicate", "near_duplicate", "wrong_caption"):
        other = _other(config, seed, index, claim, trouble)
        if other is None:
            trouble = None  # no row that would do, as at the very start
    if other is not None and trouble == "wrong_caption":
        caption = other.caption
    elif other is not None:
        claim, caption = other.claim, other.caption
        extension = other.extension if trouble == "exact_duplicate" else extension
    elif trouble == "boilerplate":
        caption = str(rng.choice(BOILERPLATE)).format(n=int(rng.integers(10000)))
    return Row(index, claim, caption, extension, trouble, other.index if other else None)


def _trouble(config: ScenesConfig, chance: float) -> str | None:
    for kind, rate in config.trouble:
        if chance < rate:
            return kind
        chance -= rate
    return None


def _other(config: ScenesConfig, seed: int, index: int, claim: Claim, trouble: str) -> Row | None:
    """A row without trouble: an earlier one to be repeated, or one whose caption is wrong for ``claim`` in two ways."""
    rng = np.random.default_rng([seed, SPOIL, index])
    for _ in range(100):
        candidate = int(rng.integers(config.count if trouble == "wrong_caption" else index)) if index else 0
        # The first number of a row's plan decides on trouble: asking for that alone keeps this free of recursion.
        if candidate == index or _trouble(config, np.random.default_rng([seed, PLAN, candidate]).random()) is not None:
            continue
        other = scene(config, seed, candidate)
        if trouble != "wrong_caption" or len(differing(claim, other.claim)) >= 2:
            return other
    return None


def rows(config: ScenesConfig, seed: int, start: int = 0, stop: int | None = None) -> pa.Table:
    """The listing, or its rows from ``start`` to before ``stop``: string columns url, caption, truth (`Row.truth`)."""
    last = config.count if stop is None else min(stop, config.count)
    found = [scene(config, seed, index) for index in range(start, last)]
    columns = {name: [getattr(row, name) for row in found] for name in ("url", "caption", "truth")}
    return pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns]))


# ---------------------------------------------------------------------------------------------- files


def file_bytes(config: ScenesConfig, seed: int, row: Row) -> bytes | None:
    """What the server sends for ``row``; None for a dead link."""
    rng = np.random.default_rng([seed, SPOIL, row.index, 1])
    if row.trouble == "dead_link":
        return None
    if row.trouble == "mislabelled":
        return b"<!DOCTYPE html><html><body><h1>This image is no longer available</h1></body></html>\n"
    if row.trouble == "exact_duplicate" and row.of is not None:
        return file_bytes(config, seed, scene(config, seed, row.of))
    source = row.of if row.trouble == "near_duplicate" and row.of is not None else row.index
    size = int(rng.integers(8, 25)) if row.trouble == "tiny" else config.image_size
    image = Image.fromarray(draw(row.claim, np.random.default_rng([seed, PICTURE, source]), size))
    if row.trouble == "near_duplicate":
        side = round(size * rng.uniform(0.8, 0.97))
        image = image.resize((side, side), Image.Resampling.LANCZOS)
        light = rng.uniform(0.97, 1.03)
        image = image.point([min(round(value * light), 255) for value in range(256)] * 3)
    if row.trouble == "extreme_aspect":
        short = round(size / rng.uniform(5, 8))
        image = image.resize((size, short) if rng.random() < 0.5 else (short, size), Image.Resampling.LANCZOS)
    data = _encode(image, row.extension, quality=int(rng.integers(85, 96)))
    return data[: int(len(data) * rng.uniform(0.3, 0.7))] if row.trouble == "truncated" else data


def _encode(image: Image.Image, extension: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    if extension == "png":
        image.save(buffer, "PNG", compress_level=4)
    else:
        image.save(buffer, {"jpg": "JPEG", "webp": "WEBP"}[extension], quality=quality)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------- server


class _Handler(BaseHTTPRequestHandler):
    """Answers GET /{index:06d}.{extension}; connections are kept alive."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, config: ScenesConfig, seed: int, *args: object) -> None:
        self.config, self.seed = config, seed
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Sends the file, or 404 for a dead link and for a path that is not of the corpus."""
        name, _, extension = self.path.split("?")[0].lstrip("/").partition(".")
        row = scene(self.config, self.seed, int(name)) if name.isdecimal() and int(name) < self.config.count else None
        data = file_bytes(self.config, self.seed, row) if row is not None and row.extension == extension else None
        self.send_response(200 if data is not None else 404)
        self.send_header("Content-Type", CONTENT_TYPE[extension] if data is not None else "text/plain")
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Says nothing: a line a request would drown the log."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


@contextmanager
def serve(config: ScenesConfig, seed: int, host: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    """Serves the corpus on a free port while the context lasts; gives (host, port)."""
    server = _Server((host, 0), functools.partial(_Handler, config, seed))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield host, int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
