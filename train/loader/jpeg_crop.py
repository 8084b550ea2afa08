"""Crops of a JPEG without decoding the rest of it.

A baseline JPEG with restart markers (ITU-T T.81, B.2.1) is a grid of intervals that are decoded independently of each
other, if a row of MCUs (blocks with sides of 8 or 16 pixels) is a whole number of them. `cut_jpeg` builds a smaller
JPEG from the intervals that a crop touches. `dataprep.images.pixel_encodings` writes such files.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

START_OF_FRAME, START_OF_SCAN, RESTART_INTERVAL = 0xC0, 0xDA, 0xDD  # baseline; other frames are not cut
END_OF_IMAGE = b"\xff\xd9"
HEADER = 4096  # bytes within which a packed image's scan starts


class JpegGrid(NamedTuple):
    """The restart intervals of a JPEG; sizes in pixels."""

    frame: int  # offset of the frame's height in the file
    scan: int  # offset of the first entropy-coded byte
    height: int
    width: int
    mcu_height: int
    interval_width: int
    columns: int  # intervals per row of MCUs
    rows: int
    margin: int  # pixels around a crop that its own pixels depend on, by the interpolation of subsampled colours


class JpegCut(NamedTuple):
    """A smaller JPEG, where its top left pixel lies in the whole image, and its size."""

    data: bytes
    top: int
    left: int
    height: int
    width: int


def cut_jpeg(data: np.ndarray, shape: tuple[int, int], top: int, left: int, height: int, width: int) -> JpegCut | None:
    """Returns a JPEG of the intervals that a crop of the file ``data`` (uint8) needs: its pixels are exactly the same.

    None if ``data`` is no image of ``shape`` (height and width) that can be cut (it has no restart markers, is
    progressive, or is damaged), or if the crop needs all of it.
    """
    grid = parse_jpeg(data[:HEADER].tobytes())
    if grid is None or (grid.height, grid.width) != shape or data[-2:].tobytes() != END_OF_IMAGE:
        return None
    first_row, last_row = _touched(top, height, grid.margin, grid.mcu_height, grid.rows)
    first_column, last_column = _touched(left, width, grid.margin, grid.interval_width, grid.columns)
    if (last_row - first_row + 1, last_column - first_column + 1) == (grid.rows, grid.columns):
        return None
    found = find_restarts(data[grid.scan :])
    if len(found) != grid.rows * grid.columns - 1:
        return None
    new_top, new_left = first_row * grid.mcu_height, first_column * grid.interval_width
    new_height = min((last_row + 1) * grid.mcu_height, grid.height) - new_top
    new_width = min((last_column + 1) * grid.interval_width, grid.width) - new_left
    header, scan = bytearray(data[: grid.scan]), memoryview(data[grid.scan :].data)
    header[grid.frame : grid.frame + 4] = new_height.to_bytes(2, "big") + new_width.to_bytes(2, "big")
    parts: list[bytes | bytearray | memoryview] = [header]
    edges = np.concatenate([[-2], found, [len(scan) - len(END_OF_IMAGE)]])  # a marker before the first interval too
    for row in range(first_row, last_row + 1):
        at = row * grid.columns
        for start, end in pairwise(edges[at + first_column : at + last_column + 2].tolist()):
            # Restart markers count modulo 8 from the start of the file.
            parts += (scan[start + 2 : end], bytes((0xFF, 0xD0 + len(parts) // 2 % 8)))
    parts[-1] = END_OF_IMAGE
    return JpegCut(b"".join(parts), new_top, new_left, new_height, new_width)


def _touched(start: int, size: int, margin: int, step: int, count: int) -> tuple[int, int]:
    """Returns the first and the last of ``count`` intervals of ``step`` pixels that a span with its margin touches."""
    return max(0, start - margin) // step, min(count - 1, (start + size + margin - 1) // step)


def find_restarts(scan: np.ndarray) -> np.ndarray:
    """Returns the offsets of the restart markers in entropy-coded bytes, where 0xFF is a marker or followed by 0."""
    found = np.flatnonzero(scan[:-1] == 0xFF)
    offsets: np.ndarray = found[scan[found + 1] & 0xF8 == 0xD0]
    return offsets


def parse_jpeg(data: bytes) -> JpegGrid | None:
    """Returns the grid of restart intervals of a baseline JPEG of one scan, from its header; None if it has none."""
    at, interval, frame = 2, 0, 0
    if data[:2] != b"\xff\xd8":
        return None
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if kind == RESTART_INTERVAL:
            interval = int.from_bytes(data[at + 4 : at + 6], "big")
        elif kind == START_OF_FRAME:
            frame = at + 5
        elif 0xC1 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # progressive, lossless, arithmetic
            return None
        elif kind == START_OF_SCAN:
            if not (frame and interval) or data[at + 4] != data[frame + 4]:
                return None
            return _measure_grid(data, frame, at + 2 + size, interval)
        at += 2 + size
    return None


def _measure_grid(data: bytes, frame: int, scan: int, interval: int) -> JpegGrid | None:
    height, width = (int.from_bytes(data[at : at + 2], "big") for at in (frame, frame + 2))
    factors = [data[frame + 6 + 3 * component] for component in range(data[frame + 4])]
    across, down = max(factor >> 4 for factor in factors), max(factor & 15 for factor in factors)
    if len(factors) == 1:  # a scan of one component has MCUs of one block
        across = down = 1
    mcus, rows = -(-width // (8 * across)), -(-height // (8 * down))
    if not mcus or mcus % interval:
        return None
    margin = max(across, down) if max(across, down) > 1 else 0
    return JpegGrid(frame, scan, height, width, 8 * down, 8 * across * interval, mcus // interval, rows, margin)
