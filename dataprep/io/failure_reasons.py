"""Why a row has no image: all reasons of the download, as short tokens.

Column ``reason`` of a download table is one of these, or null if the row has an image.
"""

from __future__ import annotations

from typing import NamedTuple

SUCCESS, NOT_FETCHED, NOT_RESIZED = "success", "failed_to_download", "failed_to_resize"
FORGOTTEN = "forgotten"  # the reason of rows that `forget` took out
STATUSES = (SUCCESS, NOT_FETCHED, NOT_RESIZED)


class FailureReason(NamedTuple):
    """``transient``: the failure may pass, so `download.retry_failed` tries again."""

    status: str
    transient: bool
    meaning: str


REASONS = {
    # The URL itself: no request is made.
    "url": FailureReason(NOT_FETCHED, False, "not a fetchable URL: malformed, without host, with a password, too long"),
    "scheme": FailureReason(NOT_FETCHED, False, "neither http nor https"),
    FORGOTTEN: FailureReason(NOT_FETCHED, False, "removed by `forget`"),
    # Addresses and connections.
    "address": FailureReason(
        NOT_FETCHED, False, "resolves to an address that is not public, or spells an address in disguise"
    ),
    "dns": FailureReason(NOT_FETCHED, True, "the host name was not found"),
    "connection": FailureReason(NOT_FETCHED, True, "the connection was refused, or broke before the end of the body"),
    "tls": FailureReason(NOT_FETCHED, False, "no valid certificate, or no common TLS version"),
    "timeout": FailureReason(NOT_FETCHED, True, "not finished within fetch.timeout"),
    # What the server answered.
    "redirects": FailureReason(NOT_FETCHED, False, "more redirects than fetch.max_redirects"),
    "http_401": FailureReason(NOT_FETCHED, False, "HTTP 401: authentication required"),
    "http_403": FailureReason(NOT_FETCHED, False, "HTTP 403: forbidden"),
    "http_404": FailureReason(NOT_FETCHED, False, "HTTP 404: not found"),
    "http_410": FailureReason(NOT_FETCHED, False, "HTTP 410: gone"),
    "http_429": FailureReason(NOT_FETCHED, True, "HTTP 429: too many requests"),
    "host_closed": FailureReason(
        NOT_FETCHED, True, "not requested: the host kept asking to stay away (429 or 5xx with a long Retry-After)"
    ),
    "http_4xx": FailureReason(NOT_FETCHED, False, "another HTTP status from 400 to 499"),
    "http_5xx": FailureReason(NOT_FETCHED, True, "an HTTP status from 500: server error"),
    "http_other": FailureReason(
        NOT_FETCHED, False, "an HTTP status below 400 without a body, or a redirect without a target"
    ),
    "bad_response": FailureReason(NOT_FETCHED, False, "not valid HTTP: headers, encodings"),
    "too_large": FailureReason(NOT_FETCHED, False, "a body above fetch.max_bytes, counted after decompression"),
    # Opt-outs: never requested again.
    "robots_txt": FailureReason(NOT_FETCHED, False, "robots.txt disallows the URL: not requested"),
    "robots_unreachable": FailureReason(
        NOT_FETCHED, True, "robots.txt could not be read (HTTP 5xx): everything is disallowed"
    ),
    "robots_tag": FailureReason(NOT_FETCHED, False, "X-Robots-Tag opts the image out"),
    "tdm": FailureReason(NOT_FETCHED, False, "text and data mining is reserved by tdmrep.json or a header"),
    # Lists of hashes: nothing of the image is kept.
    "hash_opt_out": FailureReason(NOT_FETCHED, False, "on a list of download.hash_lists: opted out"),
    "hash_illegal": FailureReason(NOT_FETCHED, False, "on a list of download.hash_lists: known to be illegal"),
    # Files of a folder or tar. The listing finds these before anything is fetched, except files that go missing later.
    "file": FailureReason(NOT_FETCHED, False, "a file of a folder that cannot be read, or lies outside the folder"),
    "incomplete": FailureReason(
        NOT_FETCHED, False, "half a pair: a sample, caption or line of a list without its image"
    ),
    "text": FailureReason(
        NOT_FETCHED, False, "a caption or JSON that cannot be read: unknown encoding, broken, an object, not text"
    ),
    # The image.
    "not_image": FailureReason(NOT_RESIZED, False, "not in a supported image format"),
    "truncated": FailureReason(NOT_RESIZED, False, "the file ends early"),
    "damaged": FailureReason(NOT_RESIZED, False, "the file cannot be decoded"),
    "pixels": FailureReason(NOT_RESIZED, False, "more than max_pixels according to the header"),
    "mode": FailureReason(NOT_RESIZED, False, "pixels without an RGB interpretation, such as floating point"),
    "min_side": FailureReason(NOT_RESIZED, False, "the shorter side is below min_side"),
    "max_aspect": FailureReason(NOT_RESIZED, False, "the longer side is above max_aspect times the shorter one"),
    "encode": FailureReason(NOT_RESIZED, False, "cannot be stored in encode_format"),
}
TRANSIENT = frozenset(name for name, reason in REASONS.items() if reason.transient)


class FailedError(Exception):
    """Why there is no image: ``reason`` is a key of `REASONS`, the text has details.

    Texts are short and free of ports, addresses and times, so that a rerun writes the same bytes.
    """

    def __init__(self, reason: str, text: str = "") -> None:
        assert reason in REASONS, reason
        super().__init__(text or REASONS[reason].meaning)
        self.reason = reason


def http_reason(status: int) -> str:
    """Returns the reason for an HTTP status other than 200."""
    if f"http_{status}" in REASONS:
        return f"http_{status}"
    return "http_5xx" if status >= 500 else "http_4xx" if status >= 400 else "http_other"
