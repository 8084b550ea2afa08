"""Small colour profiles, made tag by tag as ICC.1:2010 says."""

from __future__ import annotations

import struct

import numpy as np

# Red, green and blue as XYZ under D50, as the profiles of Apple and Adobe state them.
DISPLAY_P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
D50 = (0.9642, 1.0, 0.8249)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values)


def _curve(gamma: float | None) -> bytes:
    """A power, or with None sRGB's curve."""
    if gamma is not None:
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    return b"para\0\0\0\0\0\3\0\0" + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79), b"wtpt": _xyz(D50)} | tags
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s", place + len(body), 0x04200000, kind, space, connection, b"acsp")
    head = (head + bytes(28)).ljust(68, b"\0") + _fixed(*D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb_profile(colours: tuple[tuple[float, ...], ...], gamma: float | None) -> bytes:
    """Returns the profile of a display with these primaries."""
    tags = {name + b"XYZ": _xyz(values) for name, values in zip((b"r", b"g", b"b"), colours, strict=True)}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags | {name + b"TRC": _curve(gamma) for name in (b"r", b"g", b"b")})


def grey_profile(gamma: float) -> bytes:
    """Returns the profile of grey values that are light to the power of 1 / ``gamma``."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk_profile(lab_of_inks: dict[tuple[int, int, int, int], tuple[float, float, float]]) -> bytes:
    """Returns a press profile by the L*a*b* colours of solid inks; overprints that are not given are black."""
    line = bytes(range(256))
    grid = b""
    for corner in np.ndindex(2, 2, 2, 2):
        lightness, a, b = lab_of_inks.get(corner, (0.0, 0.0, 0.0))
        grid += bytes([round(lightness * 2.55), round(a + 128), round(b + 128)])
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + line * 4 + grid + line * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table, b"A2B1": table})
