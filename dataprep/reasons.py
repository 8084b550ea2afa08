"""Why a row has no image: every reason that the download may give, as short tokens that can be counted.

``download.reason`` of a shard's Parquet file is one of these, or null where the row has an image.
"""

from __future__ import annotations

from typing import NamedTuple

SUCCESS, NOT_FETCHED, NOT_RESIZED = "success", "failed_to_download", "failed_to_resize"
STATUSES = (SUCCESS, NOT_FETCHED, NOT_RESIZED)


class Reason(NamedTuple):
    """``transient``: the failure can pass, so that `download.retry_failed` asks again."""

    status: str
    transient: bool
    meaning: str


REASONS = {
    # The URL itself: nothing is asked of anybody.
    "url": Reason(
        NOT_FETCHED, False, "not a URL that can be asked for: malformed, without host, with a password, too long"
    ),
    "scheme": Reason(NOT_FETCHED, False, "neither http nor https"),
    "forgotten": Reason(NOT_FETCHED, False, "taken out by `forget`"),
    # Addresses and connections.
    "address": Reason(NOT_FETCHED, False, "leads to an address that is not public, or spells one in disguise"),
    "dns": Reason(NOT_FETCHED, True, "the host's name was not found"),
    "connection": Reason(NOT_FETCHED, True, "the connection was refused, or broke before the body was whole"),
    "tls": Reason(NOT_FETCHED, False, "no valid certificate, or no common version of TLS"),
    "timeout": Reason(NOT_FETCHED, True, "not done within fetch.timeout"),
    # What the server answered.
    "redirects": Reason(NOT_FETCHED, False, "more redirects than fetch.max_redirects"),
    "http_401": Reason(NOT_FETCHED, False, "HTTP 401: a password is asked for"),
    "http_403": Reason(NOT_FETCHED, False, "HTTP 403: forbidden"),
    "http_404": Reason(NOT_FETCHED, False, "HTTP 404: not there"),
    "http_410": Reason(NOT_FETCHED, False, "HTTP 410: gone for good"),
    "http_429": Reason(NOT_FETCHED, True, "HTTP 429: too many requests"),
    "http_4xx": Reason(NOT_FETCHED, False, "another HTTP status from 400 to 499"),
    "http_5xx": Reason(NOT_FETCHED, True, "an HTTP status from 500: trouble at the server"),
    "http_other": Reason(NOT_FETCHED, False, "an HTTP status below 400 that brings no body, or a redirect to nowhere"),
    "bad_response": Reason(NOT_FETCHED, False, "not HTTP, or beyond its limits: headers, encodings"),
    "too_large": Reason(NOT_FETCHED, False, "a body above fetch.max_bytes, counted after decompression"),
    # Opt-outs: never asked again.
    "robots_txt": Reason(NOT_FETCHED, False, "robots.txt disallows the URL: it was not asked for"),
    "robots_unreachable": Reason(NOT_FETCHED, True, "robots.txt could not be read (HTTP 5xx): all is disallowed"),
    "robots_tag": Reason(NOT_FETCHED, False, "X-Robots-Tag opts the image out"),
    "tdm": Reason(NOT_FETCHED, False, "text and data mining is reserved, by tdmrep.json or a header"),
    # Files of a folder.
    "file": Reason(NOT_FETCHED, False, "a file of a folder that cannot be read, or lies outside of it"),
    # The image.
    "not_image": Reason(NOT_RESIZED, False, "the bytes are of no supported image format"),
    "truncated": Reason(NOT_RESIZED, False, "the file ends early"),
    "damaged": Reason(NOT_RESIZED, False, "the file cannot be decoded"),
    "pixels": Reason(NOT_RESIZED, False, "more than max_pixels, read from the header"),
    "mode": Reason(NOT_RESIZED, False, "pixels without a meaning as RGB, such as floating-point ones"),
    "min_side": Reason(NOT_RESIZED, False, "the shorter side is below min_side"),
    "max_aspect": Reason(NOT_RESIZED, False, "the longer side is above max_aspect times the shorter one"),
    "encode": Reason(NOT_RESIZED, False, "cannot be stored in encode_format"),
}
TRANSIENT = frozenset(name for name, reason in REASONS.items() if reason.transient)


class FailedError(Exception):
    """Why there is no image: ``reason`` is a key of `REASONS`, the text says more.

    Texts are short and free of ports, addresses and times, so that a rerun writes the same bytes.
    """

    def __init__(self, reason: str, text: str = "") -> None:
        assert reason in REASONS, reason
        super().__init__(text or REASONS[reason].meaning)
        self.reason = reason


def http_reason(status: int) -> str:
    """The token of an HTTP status that is not 200."""
    if f"http_{status}" in REASONS:
        return f"http_{status}"
    return "http_5xx" if status >= 500 else "http_4xx" if status >= 400 else "http_other"
